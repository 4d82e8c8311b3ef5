//! JSON text, token by token, by the letter of RFC 8259.
//!
//! What is not plainly right is `error.Doubt`: somebody else decides about the record then, so
//! nothing here has to say what is wrong, and nothing is guessed.

const std = @import("std");
const columns = @import("columns.zig");
const Error = columns.Error;

/// A string between its quotes, as it was written.
pub const Text = struct {
    raw: []const u8,
    has_escapes: bool,
};

/// A string at the beginning of a lane, without its quotes.
pub const Short = struct {
    lane: Lane,
    bytes: usize,
};

/// A number as it was written, and as `mantissa` times 10^`exponent` if `is_short`.
pub const Number = struct {
    raw: []const u8,
    is_negative: bool,
    is_whole: bool,
    is_short: bool,
    mantissa: u64,
    exponent: i32,
};

const MANTISSA_FULL: u64 = 1_000_000_000_000_000_000;
const EXPONENT_MAX = 9_999;
const KEYS_MAX = 128;
const LANE = columns.LANE;
const Lane = columns.Lane;

pub const Cursor = struct {
    text: []const u8,
    at: usize = 0,
    nesting_max: usize,
    keys: *Keys,

    pub fn space(self: *Cursor) void {
        while (self.at < self.text.len) : (self.at += 1) {
            switch (self.text[self.at]) {
                ' ', '\t', '\r', '\n' => {},
                else => return,
            }
        }
    }

    /// Return the next byte that is no space, without taking it.
    pub fn peek(self: *Cursor) Error!u8 {
        self.space();
        if (self.at >= self.text.len) return error.Doubt;
        return self.text[self.at];
    }

    /// Take `byte`, behind spaces.
    pub fn take(self: *Cursor, byte: u8) Error!void {
        if (try self.peek() != byte) return error.Doubt;
        self.at += 1;
    }

    /// Take a comma and return true, or take `closing` and return false.
    pub fn another(self: *Cursor, closing: u8) Error!bool {
        const byte = try self.peek();
        self.at += 1;
        if (byte == ',') return true;
        if (byte == closing) return false;
        return error.Doubt;
    }

    pub fn word(self: *Cursor, comptime wanted: []const u8) Error!void {
        if (!std.mem.startsWith(u8, self.text[self.at..], wanted)) return error.Doubt;
        self.at += wanted.len;
    }

    /// Take a string of less than a lane of plain ASCII; null if what stands here is another one.
    pub inline fn short(self: *Cursor) ?Short {
        const start = self.at + 1;
        if (start + LANE > self.text.len or self.text[self.at] != '"') return null;
        const lane: Lane = self.text[start..][0..LANE].*;
        // As signed numbers, the bytes of other characters are below the control characters.
        const others = @as(@Vector(LANE, i8), @bitCast(lane)) < @as(@Vector(LANE, i8), @splat(0x20));
        const stops: u16 = @bitCast((lane == @as(Lane, @splat('"'))) |
            (lane == @as(Lane, @splat('\\'))) | others);
        if (stops == 0) return null;
        const bytes = @ctz(stops);
        if (self.text[start + bytes] != '"') return null;
        self.at = start + bytes + 1;
        return .{ .lane = lane, .bytes = bytes };
    }

    /// Take a string. It is UTF-8 without control characters; its escapes are still unread.
    pub fn string(self: *Cursor) Error!Text {
        if (self.at >= self.text.len or self.text[self.at] != '"') return error.Doubt;
        self.at += 1;
        const start = self.at;
        var has_escapes = false;
        var has_high = false;
        while (true) {
            const ended = self.plain(&has_high);
            if (!ended) return error.Doubt;
            switch (self.text[self.at]) {
                '"' => break,
                '\\' => {
                    has_escapes = true;
                    self.at += 2; // what is escaped ends no string
                },
                else => return error.Doubt,
            }
        }
        const raw = self.text[start..self.at];
        self.at += 1;
        if (has_high and !std.unicode.utf8ValidateSlice(raw)) return error.Doubt;
        return .{ .raw = raw, .has_escapes = has_escapes };
    }

    /// Go on to the next quote, backslash or control character; false if there is none.
    fn plain(self: *Cursor, has_high: *bool) bool {
        while (self.at + LANE <= self.text.len) {
            const lane: Lane = self.text[self.at..][0..LANE].*;
            const stops: u16 = @bitCast((lane == @as(Lane, @splat('"'))) |
                (lane == @as(Lane, @splat('\\'))) | (lane < @as(Lane, @splat(0x20))));
            const high: u16 = @bitCast(lane >= @as(Lane, @splat(0x80)));
            if (stops != 0) {
                const before = @ctz(stops);
                if (high & ((@as(u16, 1) << @intCast(before)) - 1) != 0) has_high.* = true;
                self.at += before;
                return true;
            }
            if (high != 0) has_high.* = true;
            self.at += LANE;
        }
        while (self.at < self.text.len) : (self.at += 1) {
            const byte = self.text[self.at];
            if (byte == '"' or byte == '\\' or byte < 0x20) return true;
            if (byte >= 0x80) has_high.* = true;
        }
        return false;
    }

    pub fn number(self: *Cursor) Error!Number {
        const start = self.at;
        var found = Number{
            .raw = &.{},
            .is_negative = self.here() == '-',
            .is_whole = true,
            .is_short = true,
            .mantissa = 0,
            .exponent = 0,
        };
        if (found.is_negative) self.at += 1;
        const begins_with_zero = self.here() == '0';
        if (try self.digits(&found, 0) > 1 and begins_with_zero) return error.Doubt;
        if (self.here() == '.') {
            found.is_whole = false;
            self.at += 1;
            _ = try self.digits(&found, -1);
        }
        if (self.here() | 0x20 == 'e') {
            found.is_whole = false;
            self.at += 1;
            found.exponent += try self.exponentPart();
        }
        found.raw = self.text[start..self.at];
        return found;
    }

    /// The byte here, or 0 at the end (which is no JSON outside of strings).
    fn here(self: *const Cursor) u8 {
        return if (self.at < self.text.len) self.text[self.at] else 0;
    }

    /// Take one digit or more into the mantissa and return their count; each moves the point by
    /// `shift`.
    fn digits(self: *Cursor, found: *Number, shift: i32) Error!usize {
        const start = self.at;
        while (self.at < self.text.len) : (self.at += 1) {
            const digit = self.text[self.at] -% '0';
            if (digit > 9) break;
            if (found.mantissa >= MANTISSA_FULL) {
                found.is_short = false; // another digit would not fit
                continue;
            }
            found.mantissa = found.mantissa * 10 + digit;
            found.exponent += shift;
        }
        if (self.at == start) return error.Doubt;
        return self.at - start;
    }

    fn exponentPart(self: *Cursor) Error!i32 {
        const is_negative = self.here() == '-';
        if (is_negative or self.here() == '+') self.at += 1;
        const start = self.at;
        var value: i32 = 0;
        while (std.ascii.isDigit(self.here())) : (self.at += 1) {
            value = value * 10 + (self.here() - '0');
            if (value > EXPONENT_MAX) return error.Doubt;
        }
        if (self.at == start) return error.Doubt;
        return if (is_negative) -value else value;
    }

    /// Take any value that nobody wants; everything in it must be as it has to be.
    pub fn skip(self: *Cursor, depth: usize) Error!void {
        switch (try self.peek()) {
            '{' => try self.skipObject(depth + 1),
            '[' => try self.skipArray(depth + 1),
            '"' => try self.skipString(),
            't' => try self.word("true"),
            'f' => try self.word("false"),
            'n' => try self.word("null"),
            else => _ = try self.number(),
        }
    }

    fn skipString(self: *Cursor) Error!void {
        const text = try self.string();
        if (!text.has_escapes) return;
        var rest = text.raw;
        var room: [4]u8 = undefined;
        while (std.mem.indexOfScalar(u8, rest, '\\')) |at| {
            rest = rest[at..];
            _ = try unescape(&rest, &room);
        }
    }

    fn skipArray(self: *Cursor, depth: usize) Error!void {
        if (depth > self.nesting_max) return error.Doubt;
        try self.take('[');
        if (try self.peek() == ']') {
            self.at += 1;
            return;
        }
        while (true) {
            try self.skip(depth);
            if (!try self.another(']')) return;
        }
    }

    fn skipObject(self: *Cursor, depth: usize) Error!void {
        if (depth > self.nesting_max) return error.Doubt;
        try self.take('{');
        if (try self.peek() == '}') {
            self.at += 1;
            return;
        }
        const first_key = self.keys.count;
        while (true) {
            _ = try self.peek();
            try self.keys.add(try self.string(), first_key);
            try self.take(':');
            try self.skip(depth);
            if (!try self.another('}')) break;
        }
        self.keys.count = first_key;
    }
};

/// The keys met so far of all objects that are open, which nobody knows; each may stand in its
/// object once. An object's begin at the count that it found.
pub const Keys = struct {
    found: [KEYS_MAX][]const u8,
    count: usize,

    pub fn add(self: *Keys, key: Text, first: usize) Error!void {
        // Two spellings of one key would look different.
        if (key.has_escapes or self.count == KEYS_MAX) return error.Doubt;
        for (self.found[first..self.count]) |other| {
            if (std.mem.eql(u8, other, key.raw)) return error.Doubt;
        }
        self.found[self.count] = key.raw;
        self.count += 1;
    }
};

/// Take the escape with which `rest` begins, write what it means and return how many bytes.
pub fn unescape(rest: *[]const u8, room: *[4]u8) Error!usize {
    const text = rest.*;
    if (text.len < 2) return error.Doubt;
    const meant: u8 = switch (text[1]) {
        '"', '\\', '/' => text[1],
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'u' => return unescapeUnit(rest, room),
        else => return error.Doubt,
    };
    room[0] = meant;
    rest.* = text[2..];
    return 1;
}

fn unescapeUnit(rest: *[]const u8, room: *[4]u8) Error!usize {
    const text = rest.*;
    var point: u21 = try unit(text);
    var taken: usize = 6;
    if (point >= 0xD800 and point < 0xDC00) {
        const low = try unit(text[6..]);
        if (low < 0xDC00 or low > 0xDFFF) return error.Doubt;
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        taken = 12;
    }
    rest.* = text[taken..];
    return std.unicode.utf8Encode(point, room) catch return error.Doubt;
}

/// Return the number of the `\uXXXX` with which `text` begins.
fn unit(text: []const u8) Error!u21 {
    if (text.len < 6 or text[0] != '\\' or text[1] != 'u') return error.Doubt;
    var value: u21 = 0;
    for (text[2..6]) |digit| {
        const part = std.fmt.charToDigit(digit, 16) catch return error.Doubt;
        value = value * 16 + part;
    }
    return value;
}
