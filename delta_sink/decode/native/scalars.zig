//! One JSON value as one value of a column: the plain spellings only, all others are a doubt.
//!
//! What the values mean is said in `delta_sink/decode/scalars.py`, which decides the others.

const std = @import("std");
const scan = @import("scan.zig");
const Error = @import("columns.zig").Error;

const POWERS = blk: {
    var powers: [23]f64 = undefined;
    var value: f64 = 1;
    for (&powers) |*place| {
        place.* = value;
        value *= 10; // exact up to 10^22
    }
    break :blk powers;
};
const MANTISSA_EXACT: u64 = 1 << 53;

pub fn float64(number: scan.Number) Error!f64 {
    const magnitude = @abs(number.exponent);
    if (number.is_short and number.mantissa <= MANTISSA_EXACT and magnitude < POWERS.len) {
        // Both are exact, so that the one operation on them rounds right (Clinger, 1990).
        const mantissa: f64 = @floatFromInt(number.mantissa);
        const power = POWERS[magnitude];
        const value = if (number.exponent < 0) mantissa / power else mantissa * power;
        return if (number.is_negative) -value else value;
    }
    const value = std.fmt.parseFloat(f64, number.raw) catch return error.Doubt;
    if (!std.math.isFinite(value)) return error.Doubt;
    return value;
}

pub fn float32(number: scan.Number) Error!f32 {
    const value = std.fmt.parseFloat(f32, number.raw) catch return error.Doubt;
    if (!std.math.isFinite(value)) return error.Doubt;
    return value;
}

pub fn integer(comptime T: type, number: scan.Number) Error!T {
    if (!number.is_whole or !number.is_short) return error.Doubt;
    const value: i128 = if (number.is_negative) -@as(i128, number.mantissa) else number.mantissa;
    return std.math.cast(T, value) orelse error.Doubt;
}

/// Return `[-+]digits[.digits]` times 10^scale; every digit must have a place in the type.
pub fn decimal(text: []const u8, precision: u8, scale: u8) Error!i128 {
    var rest = text;
    const is_negative = rest.len > 0 and rest[0] == '-';
    if (rest.len > 0 and (rest[0] == '-' or rest[0] == '+')) rest = rest[1..];
    if (rest.len == 0) return error.Doubt;
    const point = std.mem.indexOfScalar(u8, rest, '.') orelse rest.len;
    const whole = std.mem.trimStart(u8, rest[0..point], "0");
    const fraction = if (point == rest.len) rest[point..] else rest[point + 1 ..];
    if (point == 0 or (point < rest.len and fraction.len == 0)) return error.Doubt;
    if (whole.len > precision - scale or fraction.len > scale) return error.Doubt;
    var value: i128 = 0;
    for ([_][]const u8{ whole, fraction }) |digits| {
        for (digits) |digit| {
            if (!std.ascii.isDigit(digit)) return error.Doubt;
            value = value * 10 + (digit - '0');
        }
    }
    for (fraction.len..scale) |_| value *= 10;
    return if (is_negative) -value else value;
}

/// Return `YYYY-MM-DD` as days since 1970.
pub fn date(text: []const u8) Error!i32 {
    if (text.len != 10 or text[4] != '-' or text[7] != '-') return error.Doubt;
    const year = try twoDigits(text[0..2]) * 100 + try twoDigits(text[2..4]);
    const month = try twoDigits(text[5..7]);
    const day = try twoDigits(text[8..10]);
    if (year < 1 or month < 1 or month > 12 or day < 1 or day > lastDay(year, month)) {
        return error.Doubt;
    }
    // Years that begin in March, so that a leap day is the last one.
    const shifted = if (month > 2) year else year - 1;
    const era = @divFloor(shifted, 400);
    const year_of_era = shifted - era * 400;
    const day_of_year = @divFloor(153 * (if (month > 2) month - 3 else month + 9) + 2, 5) + day - 1;
    const leap_days = @divFloor(year_of_era, 4) - @divFloor(year_of_era, 100);
    return era * 146_097 + year_of_era * 365 + leap_days + day_of_year - 719_468;
}

fn lastDay(year: i32, month: i32) i32 {
    return switch (month) {
        4, 6, 9, 11 => 30,
        2 => if (@mod(year, 4) == 0 and (@mod(year, 100) != 0 or @mod(year, 400) == 0)) 29 else 28,
        else => 31,
    };
}

const MICROS_MIN = -62_135_596_800_000_000;
const MICROS_MAX = 253_402_300_799_999_999;

/// Return a date, `T` or a space, and `HH:MM:SS[.fraction]` with a zone or none, as microseconds
/// since 1970. Digits below microseconds are cut off.
pub fn timestamp(text: []const u8, is_zoned: bool) Error!i64 {
    if (text.len < 19 or (text[10] != 'T' and text[10] != ' ')) return error.Doubt;
    if (text[13] != ':' or text[16] != ':') return error.Doubt;
    const days: i64 = try date(text[0..10]);
    const hour: i64 = try twoDigits(text[11..13]);
    const minute: i64 = try twoDigits(text[14..16]);
    const second: i64 = try twoDigits(text[17..19]);
    if (hour > 23 or minute > 59 or second > 59) return error.Doubt;
    var rest = text[19..];
    const fraction = try fractionMicros(&rest);
    if (rest.len > 0 and !is_zoned) return error.Doubt;
    const minutes = hour * 60 + minute - try zoneMinutes(rest);
    return inRange((days * 86_400 + minutes * 60 + second) * 1_000_000 + fraction);
}

fn fractionMicros(rest: *[]const u8) Error!i64 {
    const text = rest.*;
    if (text.len == 0 or text[0] != '.') return 0;
    var micros: i64 = 0;
    var worth: i64 = 100_000;
    var at: usize = 1;
    while (at < text.len and std.ascii.isDigit(text[at])) : (at += 1) {
        micros += worth * (text[at] - '0');
        worth = @divFloor(worth, 10);
    }
    if (at == 1) return error.Doubt;
    rest.* = text[at..];
    return micros;
}

fn zoneMinutes(text: []const u8) Error!i64 {
    if (text.len == 0 or (text.len == 1 and text[0] == 'Z')) return 0;
    if (text[0] != '+' and text[0] != '-') return error.Doubt;
    const minute_at: usize = switch (text.len) {
        3, 5 => 3,
        6 => if (text[3] == ':') 4 else return error.Doubt,
        else => return error.Doubt,
    };
    const hour: i64 = try twoDigits(text[1..3]);
    const minute: i64 = if (text.len == 3) 0 else try twoDigits(text[minute_at..][0..2]);
    if (hour > 23 or minute > 59) return error.Doubt;
    const minutes = hour * 60 + minute;
    return if (text[0] == '-') -minutes else minutes;
}

/// Return a whole number of units of `factor` microseconds each.
pub fn epoch(number: scan.Number, factor: i64) Error!i64 {
    const units = try integer(i64, number);
    return inRange(std.math.mul(i64, units, factor) catch return error.Doubt);
}

fn inRange(micros: i64) Error!i64 {
    return if (micros < MICROS_MIN or micros > MICROS_MAX) error.Doubt else micros;
}

fn twoDigits(text: []const u8) Error!i32 {
    const tens = text[0] -% '0';
    const ones = text[1] -% '0';
    if (tens > 9 or ones > 9) return error.Doubt;
    return @as(i32, tens) * 10 + ones;
}

/// Write what base64 text with its padding means; return how many bytes.
pub fn base64(text: []const u8, room: []u8) Error!usize {
    const decoder = std.base64.standard.Decoder;
    const size = decoder.calcSizeForSlice(text) catch return error.Doubt;
    decoder.decode(room[0..size], text) catch return error.Doubt;
    return size;
}

/// Write what hexadecimal text means; return how many bytes.
pub fn hex(text: []const u8, room: []u8) Error!usize {
    const bytes = std.fmt.hexToBytes(room, text) catch return error.Doubt;
    return bytes.len;
}
