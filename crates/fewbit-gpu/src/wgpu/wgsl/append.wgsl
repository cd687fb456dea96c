// New keys and values into the pages of their sequences, in the CPU's layout (see `fewbit_kernels::kv`): a key's element
// lies among those of 16 positions, so that two positions share a word of f16; the even one writes for both.

@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> tables: array<u32>;
@group(0) @binding(5) var<storage, read_write> pool: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: width = all heads, part = head, a = words of a page, b = words of its keys, c = elements of a row of values.
    if (id.x >= shape.width) { return; }
    let row = id.y;
    let sequence = step.sequence_at + tables[step.row_at + row] * 6u;
    let first_row = tables[sequence];
    let n_rows = tables[sequence + 1u];
    let position = tables[sequence + 2u] + row - first_row;
    let page = position / 256u - tables[sequence + 3u];
    let slot = tables[step.slot_at + tables[sequence + 4u] + page] * shape.a;
    let head = id.x / shape.part;
    let d = id.x % shape.part;
    let j = position % 256u;
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
}
