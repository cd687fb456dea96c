// New keys and values into the pages of their sequences, in the CPU's layout (see `fewbit_kernels::kv`): a key's element
// lies among those of 16 positions, so that two positions share a word of f16, as elements or as scales of blocks of 32; the
// even one writes for both.

@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> tables: array<u32>;
@group(0) @binding(5) var<storage, read_write> pool: array<u32>;

#if BLOCKS
fn largest_of(of_keys: bool, at: u32) -> u32 {
    var high = 0u;
    for (var i = 0u; i < times(32u); i++) {
        high = max(high, bitcast<u32>(select(v[at + i], k[at + i], of_keys)) & 0x7fffffffu);
    }
    return high;
}

// The scale of a block in half precision.
fn scale_of(largest: u32) -> u32 {
    if (largest >= 0x7f800000u) { return 0x7e00u; }
    if (largest < 0x0d800000u) { return 0u; }
    return to_half(div_(bitcast<f32>(largest), 127.0));
}

// Writes a block: 8 words of codes, of which one comes `apart` words after the other, and its scale, which shares a word
// with that of the position before or after it.
fn append_block(of_keys: bool, row: u32, first_row: u32, end: u32, at: u32, j: u32, codes: u32, apart: u32, scales: u32) {
    let largest = largest_of(of_keys, at);
    var inverse = 0.0;
    if (largest >= 0x0d800000u && largest < 0x7f800000u) { inverse = div_(127.0, bitcast<f32>(largest)); }
    for (var quad = 0u; quad < times(8u); quad++) {
        var word = 0u;
        for (var i = 0u; i < times(4u); i++) {
            let x = select(v[at + quad * 4u + i], k[at + quad * 4u + i], of_keys);
            var code = 0;
            if (inverse != 0.0) { code = code_(x, inverse); }
            word |= (bitcast<u32>(code) & 0xffu) << (i * 8u);
        }
        pool[codes + quad * apart] = word;
    }
    let scale = scale_of(largest);
    if ((j & 1u) == 0u) {
        var word = scale;
        if (row + 1u < end) { word |= scale_of(largest_of(of_keys, at + shape.width)) << 16u; }
        pool[scales] = word;
    } else if (row == first_row) {
        pool[scales] = (pool[scales] & 0xffffu) | (scale << 16u);
    }
}

#endif
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: width = all heads, part = head, a = words of a page, b = words of its keys, c = elements of a row of values.
    // A thread for each element, or for each block.
#if BLOCKS
    let first = id.x * 32u;
#else
    let first = id.x;
#endif
    if (first >= shape.width) { return; }
    let row = id.y;
    let sequence = step.sequence_at + tables[step.row_at + row] * 6u;
    let first_row = tables[sequence];
    let n_rows = tables[sequence + 1u];
    let position = tables[sequence + 2u] + row - first_row;
    let page = position / 256u - tables[sequence + 3u];
    let slot = tables[step.slot_at + tables[sequence + 4u] + page] * shape.a;
    let head = first / shape.part;
    let d = first % shape.part;
    let j = position % 256u;
#if BLOCKS
    let n = shape.part;
    let at = row * shape.width + first;
    let end = first_row + n_rows;
    // Keys of 16 positions: scales [n / 32][16], then codes [n / 4][16][4].
    let keys = slot + (head * 16u + j / 16u) * (n / 4u * 17u);
    let key_scales = keys + d / 32u * 8u + j % 16u / 2u;
    append_block(true, row, first_row, end, at, j, keys + n / 4u + d * 4u + j % 16u, 16u, key_scales);
    // Values of a head: codes [256][n], then scales [n / 32][256].
    let values = slot + shape.b + head * n * 68u;
    append_block(false, row, first_row, end, at, j, values + (j * n + d) / 4u, 1u, values + n * 64u + d * 4u + j / 2u);
#else
    let key = (head * 256u + j) / 16u * 16u * shape.part + d * 16u + j % 16u;
    let value = shape.b + (head * 256u + j) * shape.c / VALUES_PER_WORD;
#if HALF
    if ((j & 1u) == 0u) {
        // What a later position left there is written over when its turn comes.
        var word = to_half(k[row * shape.width + id.x]);
        if (row + 1u < first_row + n_rows) { word |= to_half(k[(row + 1u) * shape.width + id.x]) << 16u; }
        pool[slot + key / 2u] = word;
    } else if (row == first_row) {
        pool[slot + key / 2u] = (pool[slot + key / 2u] & 0xffffu) | (to_half(k[row * shape.width + id.x]) << 16u);
    }
    if ((d & 1u) == 0u) {
        var word = to_half(v[row * shape.width + id.x]);
        if (d + 1u < shape.part) { word |= to_half(v[row * shape.width + id.x + 1u]) << 16u; }
        pool[slot + value + d / 2u] = word;
    }
#else
    pool[slot + key] = bitcast<u32>(k[row * shape.width + id.x]);
    pool[slot + value + d] = bitcast<u32>(v[row * shape.width + id.x]);
#endif
#endif
}
