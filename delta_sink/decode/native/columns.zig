//! Arrow columns that grow by one entry at a time, and their export over Arrow's C data interface.
//!
//! A column has as many entries as it was given; a record that turns out doubtful is taken back
//! with `truncate`. All memory lies in one arena, which the consumer of the exported array frees.
//!
//! Source: Arrow columnar format 1.5; the Arrow C data interface.

const std = @import("std");

pub const Error = error{ OutOfMemory, Doubt };

pub const Kind = enum(u8) {
    boolean,
    int8,
    int16,
    int32,
    int64,
    float32,
    float64,
    decimal128,
    date32,
    timestamp,
    text,
    base64,
    hex,
    list,
    map,
    object,
};

/// One column as Python describes it; the children of a node stand behind each other.
pub const Node = extern struct {
    /// Where its key lies: `"name":`.
    key_start: u32,
    key_length: u32,
    first_child: u32,
    child_count: u32,
    kind: u8,
    is_nullable: u8,
    /// Of a timestamp: whether a zone may stand in its text.
    is_zoned: u8,
    precision: u8,
    scale: u8,
    /// Microseconds of one unit of a timestamp that is a number; 0 if it is text.
    factor: i64,
};

pub const LANE = 16;
pub const Lane = @Vector(LANE, u8);

/// `"name":` as programs write it.
pub const Key = struct {
    text: []const u8,
    /// The text again if it fits, and which bytes of the lane are its own; else no bytes.
    lane: Lane,
    mask: u16,

    fn of(text: []const u8) Key {
        var key = Key{ .text = text, .lane = @splat(0), .mask = 0 };
        if (text.len <= LANE) {
            var bytes: [LANE]u8 = @splat(0);
            @memcpy(bytes[0..text.len], text);
            key.lane = bytes;
            key.mask = @truncate((@as(u32, 1) << @intCast(text.len)) - 1);
        }
        return key;
    }

    pub fn name(self: *const Key) []const u8 {
        return self.text[1 .. self.text.len - 2];
    }

    /// Whether `text` goes on with it at `at`.
    pub inline fn stands(self: *const Key, text: []const u8, at: usize) bool {
        if (self.mask != 0 and at + LANE <= text.len) {
            const lane: Lane = text[at..][0..LANE].*;
            const same: u16 = @bitCast(lane == self.lane);
            return same & self.mask == self.mask;
        }
        return std.mem.startsWith(u8, text[at..], self.text);
    }
};

/// Bytes that grow. Aligned as Arrow wants its buffers.
const Bytes = struct {
    room: []align(64) u8 = &.{},
    len: usize = 0,

    /// Return the next `count` bytes, to be written; they belong to the buffer now.
    fn add(self: *Bytes, arena: std.mem.Allocator, count: usize) Error![]u8 {
        const after = self.len + count;
        if (after > self.room.len) try self.grow(arena, after);
        const found = self.room[self.len..after];
        self.len = after;
        return found;
    }

    /// How much room `part` times what it holds takes, with some for a lane at its end; 0 if it is empty.
    fn expected(self: *const Bytes, part: f64) usize {
        if (self.len == 0) return 0;
        const bytes: usize = @intFromFloat(@as(f64, @floatFromInt(self.len)) * part);
        return std.mem.alignForward(usize, @max(bytes, self.len) + LANE, 64);
    }

    /// Go on in the first part of `rest`.
    fn move(self: *Bytes, part: f64, rest: *[]align(64) u8) void {
        const size = self.expected(part);
        if (size == 0) return;
        const larger = rest.*[0..size];
        rest.* = @alignCast(rest.*[size..]);
        @memcpy(larger[0..self.len], self.room[0..self.len]);
        self.room = larger;
    }

    fn grow(self: *Bytes, arena: std.mem.Allocator, wanted: usize) Error!void {
        const size = @max(wanted, 2 * self.room.len, 64);
        // Not `alignedAlloc`: that writes all of the new memory once, to show its lack of a value.
        const place = arena.rawAlloc(size, .@"64", @returnAddress()) orelse return error.OutOfMemory;
        const larger: []align(64) u8 = @alignCast(place[0..size]);
        @memcpy(larger[0..self.len], self.room[0..self.len]);
        self.room = larger;
    }

    inline fn append(self: *Bytes, arena: std.mem.Allocator, comptime T: type, value: T) Error!void {
        const place = try self.add(arena, @sizeOf(T));
        std.mem.writeInt(T, place[0..@sizeOf(T)], value, .little);
    }
};

pub const Column = struct {
    kind: Kind,
    is_nullable: bool,
    is_zoned: bool,
    precision: u8,
    scale: u8,
    factor: i64,
    key: Key,
    children: []Column,
    /// Empty for as long as no entry is null.
    validity: Bytes = .{},
    offsets: Bytes = .{},
    data: Bytes = .{},
    len: usize = 0,
    nulls: usize = 0,

    pub fn appendNull(self: *Column, arena: std.mem.Allocator) Error!void {
        switch (self.kind) {
            .boolean => try setBit(&self.data, arena, self.len, false),
            .text, .base64, .hex => try self.endEntry(arena, self.data.len),
            .list, .map => try self.endEntry(arena, self.entries()),
            .object => for (self.children) |*child| try child.appendNull(arena),
            else => @memset(try self.data.add(arena, self.width()), 0),
        }
        try self.countNull(arena);
    }

    /// Append a value of a kind that has a fixed width.
    pub fn appendFixed(self: *Column, arena: std.mem.Allocator, comptime T: type, value: T) Error!void {
        try self.data.append(arena, T, value);
        try self.count(arena);
    }

    pub fn appendBoolean(self: *Column, arena: std.mem.Allocator, value: bool) Error!void {
        try setBit(&self.data, arena, self.len, value);
        try self.count(arena);
    }

    /// Append text of so many bytes at the beginning of a lane.
    pub inline fn appendShort(self: *Column, arena: std.mem.Allocator, lane: Lane, bytes: usize) Error!void {
        const before = self.data.len;
        if (before + LANE > self.data.room.len) try self.data.grow(arena, before + LANE);
        self.data.room[before..][0..LANE].* = lane;
        self.data.len = before + bytes;
        try self.endEntry(arena, before + bytes);
        try self.count(arena);
    }

    /// Return room for so many bytes of an entry of text or binary; `endText` ends the entry.
    pub fn addText(self: *Column, arena: std.mem.Allocator, bytes: usize) Error![]u8 {
        return self.data.add(arena, bytes);
    }

    /// End an entry of text or binary, of which the last `unused` bytes were not needed.
    pub fn endText(self: *Column, arena: std.mem.Allocator, unused: usize) Error!void {
        self.data.len -= unused;
        try self.endEntry(arena, self.data.len);
        try self.count(arena);
    }

    /// End an entry of a list, of a map or an object, whose children have theirs.
    pub fn endNested(self: *Column, arena: std.mem.Allocator) Error!void {
        if (self.kind != .object) try self.endEntry(arena, self.entries());
        try self.count(arena);
    }

    /// Take back all entries from `len` on.
    pub fn truncate(self: *Column, len: usize) void {
        if (self.len == len) {
            // A half-made entry may have left something in what lies below.
            switch (self.kind) {
                .text, .base64, .hex => self.data.len = self.offset(len),
                .list, .map => for (self.children) |*child| child.truncate(self.offset(len)),
                .object => for (self.children) |*child| child.truncate(len),
                else => {},
            }
            return;
        }
        if (self.validity.len != 0) {
            for (len..self.len) |at| {
                if (self.validity.room[at / 8] >> @intCast(at % 8) & 1 == 0) self.nulls -= 1;
            }
            self.validity.len = (len + 7) / 8;
        }
        self.len = len;
        switch (self.kind) {
            .boolean => self.data.len = (len + 7) / 8,
            .text, .base64, .hex => {
                self.offsets.len = if (len == 0) 0 else 4 * (len + 1);
                self.data.len = self.offset(len);
            },
            .list, .map => {
                self.offsets.len = if (len == 0) 0 else 4 * (len + 1);
                for (self.children) |*child| child.truncate(self.offset(len));
            },
            .object => for (self.children) |*child| child.truncate(len),
            else => self.data.len = len * self.width(),
        }
    }

    inline fn count(self: *Column, arena: std.mem.Allocator) Error!void {
        if (self.validity.len != 0) try setBit(&self.validity, arena, self.len, true);
        self.len += 1;
    }

    fn countNull(self: *Column, arena: std.mem.Allocator) Error!void {
        if (self.validity.len == 0) {
            // The first one: all before it are there.
            @memset(try self.validity.add(arena, self.len / 8 + 1), 0xFF);
        }
        try setBit(&self.validity, arena, self.len, false);
        self.nulls += 1;
        self.len += 1;
    }

    fn expected(self: *const Column, part: f64) usize {
        var size = self.validity.expected(part) + self.offsets.expected(part) + self.data.expected(part);
        for (self.children) |*child| size += child.expected(part);
        return size;
    }

    fn move(self: *Column, part: f64, rest: *[]align(64) u8) void {
        self.validity.move(part, rest);
        self.offsets.move(part, rest);
        self.data.move(part, rest);
        for (self.children) |*child| child.move(part, rest);
    }

    /// How many entries the child of a list or map has.
    fn entries(self: *const Column) usize {
        return self.children[0].len;
    }

    /// Write where the entry that is being made ends. The first offset is 0.
    inline fn endEntry(self: *Column, arena: std.mem.Allocator, end: usize) Error!void {
        if (end > std.math.maxInt(i32)) return error.Doubt;
        if (self.offsets.len == 0) try self.offsets.append(arena, i32, 0);
        try self.offsets.append(arena, i32, @intCast(end));
    }

    fn offset(self: *const Column, at: usize) usize {
        if (at == 0) return 0;
        return @intCast(std.mem.readInt(i32, self.offsets.room[4 * at ..][0..4], .little));
    }

    fn width(self: *const Column) usize {
        return switch (self.kind) {
            .int8 => 1,
            .int16 => 2,
            .int32, .float32, .date32 => 4,
            .int64, .float64, .timestamp => 8,
            .decimal128 => 16,
            else => unreachable,
        };
    }
};

fn setBit(bits: *Bytes, arena: std.mem.Allocator, at: usize, value: bool) Error!void {
    if (at / 8 >= bits.len) (try bits.add(arena, 1))[0] = 0;
    const mask = @as(u8, 1) << @intCast(at % 8);
    const byte = &bits.room[at / 8];
    byte.* = if (value) byte.* | mask else byte.* & ~mask;
}

/// Give `root` room for `part` times what it holds, in one piece. If there is none it grows as it did.
pub fn expect(root: *Column, arena: std.mem.Allocator, part: f64) void {
    const size = root.expected(part);
    if (size == 0) return;
    const place = arena.rawAlloc(size, .@"64", @returnAddress()) orelse return;
    var rest: []align(64) u8 = @alignCast(place[0..size]);
    root.move(part, &rest);
}

/// Return the columns `nodes[first..first + count]` and all below them, with nothing in them.
pub fn make(arena: std.mem.Allocator, nodes: []const Node, keys: []const u8, first: usize, count: usize) Error![]Column {
    const made = try arena.alloc(Column, count);
    for (made, nodes[first..][0..count]) |*column, node| {
        column.* = .{
            .kind = @enumFromInt(node.kind),
            .is_nullable = node.is_nullable != 0,
            .is_zoned = node.is_zoned != 0,
            .precision = node.precision,
            .scale = node.scale,
            .factor = node.factor,
            .key = Key.of(keys[node.key_start..][0..node.key_length]),
            .children = try make(arena, nodes, keys, node.first_child, node.child_count),
        };
    }
    return made;
}

// --- the C data interface --------------------------------------------------------------------

pub const ArrowArray = extern struct {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: [*]?*const anyopaque,
    children: ?[*]*ArrowArray,
    dictionary: ?*ArrowArray,
    release: ?*const fn (*ArrowArray) callconv(.c) void,
    private_data: ?*anyopaque,
};

/// Hand `root` and the arena in which all of it lies over to `out`, whose `release` frees it.
pub fn give(root: *Column, arena: *std.heap.ArenaAllocator, out: *ArrowArray) Error!void {
    try fill(root, arena.allocator(), out);
    out.release = releaseAll;
    out.private_data = arena;
}

fn fill(column: *Column, arena: std.mem.Allocator, out: *ArrowArray) Error!void {
    const buffers = try arena.alloc(?*const anyopaque, 3);
    // Where nothing is null the consumer need not look at a bitmap.
    buffers[0] = if (column.nulls == 0) null else column.validity.room.ptr;
    var buffer_count: i64 = 2;
    switch (column.kind) {
        .object => buffer_count = 1,
        .list, .map => buffers[1] = try offsetsOf(column, arena),
        .text, .base64, .hex => {
            buffers[1] = try offsetsOf(column, arena);
            buffers[2] = column.data.room.ptr;
            buffer_count = 3;
        },
        else => buffers[1] = column.data.room.ptr,
    }
    const children = try arena.alloc(*ArrowArray, column.children.len);
    for (children, column.children) |*place, *child| {
        place.* = try arena.create(ArrowArray);
        try fill(child, arena, place.*);
    }
    out.* = .{
        .length = @intCast(column.len),
        .null_count = @intCast(column.nulls),
        .offset = 0,
        .n_buffers = buffer_count,
        .n_children = @intCast(children.len),
        .buffers = buffers.ptr,
        .children = if (children.len == 0) null else children.ptr,
        .dictionary = null,
        .release = releaseNothing,
        .private_data = null,
    };
}

fn offsetsOf(column: *Column, arena: std.mem.Allocator) Error!*const anyopaque {
    if (column.offsets.len == 0) try column.offsets.append(arena, i32, 0);
    return column.offsets.room.ptr;
}

fn releaseNothing(array: *ArrowArray) callconv(.c) void {
    array.release = null; // its memory is the root's
}

fn releaseAll(array: *ArrowArray) callconv(.c) void {
    const arena: *std.heap.ArenaAllocator = @ptrCast(@alignCast(array.private_data.?));
    array.release = null;
    arena.deinit();
    std.heap.c_allocator.destroy(arena);
}
