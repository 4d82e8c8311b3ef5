//! Many JSON records to Arrow columns, in one pass: those records that are plainly right.
//!
//! `delta_sink_json_2` is what Python calls (`delta_sink/decode/native.py`). A record is taken
//! if its row is beyond doubt; every other one is left for the slower paths, which know all
//! spellings and can say what is wrong. So this file refuses freely and never reports.
//!
//! It is compiled with safety checks: an index out of bounds or a number that does not fit ends
//! the process instead of changing a value.

const std = @import("std");
const columns = @import("columns.zig");
const scalars = @import("scalars.zig");
const scan = @import("scan.zig");

const Column = columns.Column;
const Error = columns.Error;

pub const Options = extern struct {
    record_bytes_max: i64,
    nesting_max: u32,
    /// Whether a field that the table does not have makes a record doubtful.
    refuses_unknown: u8,
};

const Answer = enum(i32) { decoded = 0, no_memory = 1 };

/// After so many records it is plain how much room all of them take.
const SAMPLE = 64;

/// How many fields an object can have, as a column.
const FIELDS_MAX = 256;
const Seen = std.bit_set.StaticBitSet(FIELDS_MAX);

/// Decode `count` records that lie at `addresses`, each `lengths` bytes long.
///
/// Afterwards `taken` has a 1 for each record that has a row in `out`, in order, and `unknown` the
/// count of fields in them that the table does not have. `nodes[0]` is the row; `keys` has those of
/// all columns behind each other. Every array is the caller's; `out` is released by the caller.
export fn delta_sink_json_2(
    nodes: [*]const columns.Node,
    node_count: usize,
    keys: [*]const u8,
    key_bytes: usize,
    options: *const Options,
    addresses: [*]const [*]const u8,
    lengths: [*]const i64,
    count: usize,
    taken: [*]u8,
    unknown: *i64,
    out: *columns.ArrowArray,
) callconv(.c) i32 {
    const arena = std.heap.c_allocator.create(std.heap.ArenaAllocator) catch
        return @intFromEnum(Answer.no_memory);
    arena.* = std.heap.ArenaAllocator.init(std.heap.c_allocator);
    decodeAll(
        arena,
        nodes[0..node_count],
        keys[0..key_bytes],
        options.*,
        addresses[0..count],
        lengths[0..count],
        taken[0..count],
        unknown,
        out,
    ) catch {
        arena.deinit();
        std.heap.c_allocator.destroy(arena);
        return @intFromEnum(Answer.no_memory);
    };
    return @intFromEnum(Answer.decoded);
}

fn decodeAll(
    owner: *std.heap.ArenaAllocator,
    nodes: []const columns.Node,
    keys: []const u8,
    options: Options,
    addresses: []const [*]const u8,
    lengths: []const i64,
    taken: []u8,
    unknown: *i64,
    out: *columns.ArrowArray,
) Error!void {
    const arena = owner.allocator();
    const root = &(try columns.make(arena, nodes, keys, 0, 1))[0];
    const unknown_keys = try arena.create(scan.Keys);
    unknown.* = 0;
    for (addresses, lengths, taken, 0..) |address, length, *is_taken, place| {
        const rows = root.len;
        if (place == SAMPLE) columns.expect(root, arena, 1.125 * timesOfSample(lengths));
        is_taken.* = 0;
        unknown_keys.count = 0;
        if (length > options.record_bytes_max) continue;
        var reader = Reader{
            .arena = arena,
            .options = options,
            .cursor = .{
                .text = address[0..@intCast(length)],
                .nesting_max = options.nesting_max,
                .keys = unknown_keys,
            },
        };
        if (reader.record(root)) {
            is_taken.* = 1;
            unknown.* += reader.unknown;
        } else |reason| switch (reason) {
            error.Doubt => root.truncate(rows),
            error.OutOfMemory => return error.OutOfMemory,
        }
    }
    try columns.give(root, owner, out);
}

/// How many times as much there is as in the first records, by their number and by their bytes:
/// the smaller of both, so that neither a large record among the first nor many empty ones mislead.
fn timesOfSample(lengths: []const i64) f64 {
    var sampled: f64 = 0;
    var all: f64 = 0;
    for (lengths, 0..) |length, place| {
        all += @floatFromInt(length);
        if (place < SAMPLE) sampled = all;
    }
    const of_records = @as(f64, @floatFromInt(lengths.len)) / SAMPLE;
    return if (sampled == 0) of_records else @min(of_records, all / sampled);
}

/// Reads one record into the columns.
const Reader = struct {
    arena: std.mem.Allocator,
    options: Options,
    cursor: scan.Cursor,
    unknown: i64 = 0,

    fn record(self: *Reader, root: *Column) Error!void {
        if (try self.cursor.peek() != '{') return error.Doubt;
        try self.object(root, 1);
        self.cursor.space();
        if (self.cursor.at != self.cursor.text.len) return error.Doubt;
    }

    fn value(self: *Reader, column: *Column, depth: usize) Error!void {
        if (try self.cursor.peek() == 'n') {
            try self.cursor.word("null");
            if (!column.is_nullable) return error.Doubt;
            return column.appendNull(self.arena);
        }
        switch (column.kind) {
            .boolean => try self.boolean(column),
            .int8 => try self.integer(column, i8),
            .int16 => try self.integer(column, i16),
            .int32 => try self.integer(column, i32),
            .int64 => try self.integer(column, i64),
            .float32 => try column.appendFixed(self.arena, u32, @bitCast(try scalars.float32(try self.cursor.number()))),
            .float64 => try column.appendFixed(self.arena, u64, @bitCast(try scalars.float64(try self.cursor.number()))),
            .decimal128 => try self.decimal(column),
            .date32 => try column.appendFixed(self.arena, i32, try scalars.date(try self.bare())),
            .timestamp => try self.timestamp(column),
            .text => try self.text(column),
            .base64, .hex => try self.binary(column),
            .list => try self.list(column, depth + 1),
            .map => try self.map(column, depth + 1),
            .object => try self.object(column, depth + 1),
        }
    }

    fn boolean(self: *Reader, column: *Column) Error!void {
        const is_true = self.cursor.text[self.cursor.at] == 't';
        if (is_true) try self.cursor.word("true") else try self.cursor.word("false");
        try column.appendBoolean(self.arena, is_true);
    }

    fn integer(self: *Reader, column: *Column, comptime T: type) Error!void {
        try column.appendFixed(self.arena, T, try scalars.integer(T, try self.cursor.number()));
    }

    fn decimal(self: *Reader, column: *Column) Error!void {
        const digits = if (self.cursor.text[self.cursor.at] == '"')
            try self.bare()
        else
            (try self.cursor.number()).raw;
        const found = try scalars.decimal(digits, column.precision, column.scale);
        try column.appendFixed(self.arena, i128, found);
    }

    fn timestamp(self: *Reader, column: *Column) Error!void {
        const micros = if (column.factor == 0)
            try scalars.timestamp(try self.bare(), column.is_zoned)
        else
            try scalars.epoch(try self.cursor.number(), column.factor);
        try column.appendFixed(self.arena, i64, micros);
    }

    fn binary(self: *Reader, column: *Column) Error!void {
        const found = try self.bare();
        const room = try column.addText(self.arena, found.len);
        const used = if (column.kind == .hex)
            try scalars.hex(found, room)
        else
            try scalars.base64(found, room);
        try column.endText(self.arena, room.len - used);
    }

    /// Take a string that needs no reading.
    fn bare(self: *Reader) Error![]const u8 {
        const found = try self.cursor.string();
        return if (found.has_escapes) error.Doubt else found.raw;
    }

    fn text(self: *Reader, column: *Column) Error!void {
        if (self.cursor.short()) |found| return column.appendShort(self.arena, found.lane, found.bytes);
        const found = try self.cursor.string();
        const room = try column.addText(self.arena, found.raw.len);
        if (!found.has_escapes) {
            @memcpy(room, found.raw);
            return column.endText(self.arena, 0);
        }
        var rest = found.raw;
        var used: usize = 0; // what an escape means is never longer than itself
        while (std.mem.indexOfScalar(u8, rest, '\\')) |at| {
            @memcpy(room[used..][0..at], rest[0..at]);
            used += at;
            rest = rest[at..];
            var meant: [4]u8 = undefined;
            const size = try scan.unescape(&rest, &meant);
            @memcpy(room[used..][0..size], meant[0..size]);
            used += size;
        }
        @memcpy(room[used..][0..rest.len], rest);
        try column.endText(self.arena, room.len - used - rest.len);
    }

    fn list(self: *Reader, column: *Column, depth: usize) Error!void {
        if (depth > self.options.nesting_max) return error.Doubt;
        try self.cursor.take('[');
        if (try self.cursor.peek() == ']') {
            self.cursor.at += 1;
        } else {
            while (true) {
                try self.value(&column.children[0], depth);
                if (!try self.cursor.another(']')) break;
            }
        }
        try column.endNested(self.arena);
    }

    /// A map's one child is the struct of key and value, of which the key is text.
    fn map(self: *Reader, column: *Column, depth: usize) Error!void {
        if (depth > self.options.nesting_max) return error.Doubt;
        const entries = &column.children[0];
        const first_key = self.cursor.keys.count;
        try self.cursor.take('{');
        if (try self.cursor.peek() == '}') {
            self.cursor.at += 1;
        } else {
            while (true) {
                _ = try self.cursor.peek();
                const key = try self.cursor.string();
                try self.cursor.keys.add(key, first_key);
                const room = try entries.children[0].addText(self.arena, key.raw.len);
                @memcpy(room, key.raw);
                try entries.children[0].endText(self.arena, 0);
                try self.cursor.take(':');
                try self.value(&entries.children[1], depth);
                try entries.endNested(self.arena);
                if (!try self.cursor.another('}')) break;
            }
        }
        self.cursor.keys.count = first_key;
        try column.endNested(self.arena);
    }

    fn object(self: *Reader, column: *Column, depth: usize) Error!void {
        if (depth > self.options.nesting_max) return error.Doubt;
        var seen = Seen.empty;
        const first_key = self.cursor.keys.count;
        var next: usize = 0;
        var count: usize = 0;
        try self.cursor.take('{');
        if (try self.cursor.peek() == '}') {
            self.cursor.at += 1;
        } else {
            while (true) {
                if (try self.field(column, next, first_key)) |place| {
                    if (seen.isSet(place)) return error.Doubt;
                    seen.set(place);
                    count += 1;
                    try self.value(&column.children[place], depth);
                    next = place + 1;
                } else {
                    try self.cursor.skip(depth);
                }
                if (!try self.cursor.another('}')) break;
            }
        }
        self.cursor.keys.count = first_key;
        if (count != column.children.len) {
            for (column.children, 0..) |*child, place| {
                if (seen.isSet(place)) continue;
                if (!child.is_nullable) return error.Doubt;
                try child.appendNull(self.arena);
            }
        }
        try column.endNested(self.arena);
    }

    /// Take a key and its colon, and return which child it names; null for one that the table does
    /// not have.
    fn field(self: *Reader, column: *Column, next: usize, first_key: usize) Error!?usize {
        _ = try self.cursor.peek();
        // Programs write the keys of their objects in one order.
        if (next < column.children.len) {
            const wanted = &column.children[next].key;
            if (wanted.stands(self.cursor.text, self.cursor.at)) {
                self.cursor.at += wanted.text.len;
                return next;
            }
        }
        const key = try self.cursor.string();
        try self.cursor.take(':');
        for (column.children, 0..) |*child, place| {
            if (!key.has_escapes and std.mem.eql(u8, child.key.name(), key.raw)) return place;
        }
        if (self.options.refuses_unknown != 0) return error.Doubt;
        try self.cursor.keys.add(key, first_key);
        self.unknown += 1;
        return null;
    }
};

/// There is nobody to tell: what a safety check found wrong ends the process.
pub const panic = std.debug.no_panic;
