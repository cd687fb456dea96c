//! The cache and attention over it: pages have the bytes of the CPU, and outputs the bits.

use crate::memory::{Memory, Random, assert_bits, cpu, run};
use fewbit_gpu::cuda::kernels::{AppendParams, AttendParams, Row};
use fewbit_kernels::kv::Q8;
use fewbit_kernels::{AttentionSequence, AttentionShape, KvElement, KvPage, KvPageMut, PAGE};
use fewbit_model::KvType;
use half::f16;

/// An element type as bytes.
trait Bytes: KvElement {
    const TYPE: KvType;
    fn bytes(elems: &[Self]) -> Vec<u8>;
}

impl Bytes for f16 {
    const TYPE: KvType = KvType::F16;
    fn bytes(elems: &[Self]) -> Vec<u8> {
        elems.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

impl Bytes for f32 {
    const TYPE: KvType = KvType::F32;
    fn bytes(elems: &[Self]) -> Vec<u8> {
        elems.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

impl Bytes for Q8 {
    const TYPE: KvType = KvType::Q8_0;
    fn bytes(elems: &[Self]) -> Vec<u8> {
        elems.iter().map(|x| x.to_byte()).collect()
    }
}

/// A sequence: so many positions are in the cache, and so many rows come.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    n_before: usize,
    n_rows: usize,
}

/// Pages on the CPU, and the same in slots of the device.
struct Cache<T> {
    keys: Vec<Vec<T>>,
    values: Vec<Vec<T>>,
}

fn shape(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape {
        n_heads,
        n_kv_heads,
        head_dim,
        scale,
        softcap: None,
        window: None,
        is_chunked: false,
        value_offset: None,
    }
}

/// Appends rows to several sequences in one batch and attends, on both, with sinks in every other case.
fn check<T: Bytes>(random: &mut Random, shape: &AttentionShape, sequences: &[Sequence]) -> Option<()> {
    let (cpu, hd) = (cpu(), shape.head_dim);
    let (kv_width, q_width) = (shape.n_kv_heads * hd, shape.n_heads * hd);
    let n_rows: usize = sequences.iter().map(|s| s.n_rows).sum();
    let (q, k) = (random.floats(n_rows * q_width, 2.0), random.floats(n_rows * kv_width, 2.0));
    let v = random.floats(n_rows * kv_width, 2.0);
    let (key_bytes, value_bytes) = (shape.key_elems::<T>() * size_of::<T>(), shape.value_elems::<T>() * size_of::<T>());
    let page_bytes = key_bytes + value_bytes;

    let mut caches: Vec<Cache<T>> = Vec::new();
    let (mut rows, mut slots, mut pool) = (Vec::new(), Vec::new(), Vec::new());
    let n_slots: usize = sequences.iter().map(|s| (s.n_before + s.n_rows).div_ceil(PAGE)).sum();
    let mut free: Vec<u32> = (0..n_slots as u32).collect();
    for (i, s) in sequences.iter().enumerate() {
        let n_pages = (s.n_before + s.n_rows).div_ceil(PAGE);
        let new = |n: usize| vec![vec![T::default(); n]; n_pages];
        let mut cache = Cache { keys: new(shape.key_elems::<T>()), values: new(shape.value_elems::<T>()) };
        let (old_k, old_v) = (random.floats(s.n_before * kv_width, 2.0), random.floats(s.n_before * kv_width, 2.0));
        store(&cpu, shape, &mut cache, 0, &old_k, &old_v);
        // A window leaves pages behind.
        let first_seen = match shape.window {
            Some(window) if !shape.is_chunked => (s.n_before + 1).saturating_sub(window),
            _ => 0,
        };
        let first_page = (first_seen / PAGE) as u32;
        let slots_at = slots.len() as u32;
        for page in first_page as usize..n_pages {
            slots.push(free.remove(random.next() as usize % free.len()));
            pool.push((*slots.last().expect("pushed"), [T::bytes(&cache.keys[page]), T::bytes(&cache.values[page])]));
        }
        let position = |row: usize| (s.n_before + row) as u32;
        rows.extend((0..s.n_rows).map(|row| Row { position: position(row), first_page, slots_at, sequence: i as u32 }));
        caches.push(cache);
    }
    let mut bytes = vec![0u8; n_slots * page_bytes];
    for (slot, [keys, values]) in pool {
        let page = &mut bytes[slot as usize * page_bytes..][..page_bytes];
        page[..key_bytes].copy_from_slice(&keys);
        page[key_bytes..].copy_from_slice(&values);
    }
    let (mut pool, rows_memory, slots_memory) = (Memory::of(&bytes), Memory::of(&rows), Memory::of(&slots));
    let (q_memory, k_memory, v_memory) = (Memory::of(&q), Memory::of(&k), Memory::of(&v));
    let append = AppendParams {
        k: k_memory.address(),
        v: v_memory.address(),
        rows: rows_memory.address(),
        slots: slots_memory.address(),
        pool: pool.address(),
        page_bytes: page_bytes as u64,
        key_bytes: key_bytes as u64,
        n_rows: n_rows as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim: hd as u32,
        unused: 0,
    };
    run(&append.launch(T::TYPE), &append)?;
    pool.check();

    let mut at = 0;
    for (s, cache) in sequences.iter().zip(&mut caches) {
        let part = at * kv_width..(at + s.n_rows) * kv_width;
        store(&cpu, shape, cache, s.n_before, &k[part.clone()], &v[part]);
        let row = rows[at];
        for page in row.first_page as usize..cache.keys.len() {
            let slot = slots[row.slots_at as usize + page - row.first_page as usize] as usize;
            let got = &pool.get()[slot * page_bytes..][..page_bytes];
            assert!(got[..key_bytes] == T::bytes(&cache.keys[page]), "{}: keys of page {page}", T::TYPE);
            assert!(got[key_bytes..] == T::bytes(&cache.values[page]), "{}: values of page {page}", T::TYPE);
        }
        at += s.n_rows;
    }
    let pages = |cache: &'_ Cache<T>| -> Vec<(Vec<T>, Vec<T>)> {
        cache.keys.iter().cloned().zip(cache.values.iter().cloned()).collect()
    };
    let pages: Vec<_> = caches.iter().map(pages).collect();
    let of_cpu: Vec<_> = sequences
        .iter()
        .zip(&pages)
        .map(|(s, pages)| AttentionSequence {
            first_position: s.n_before,
            n_tokens: s.n_rows,
            pages: pages.iter().map(|(keys, values)| KvPage { keys, values }).collect(),
        })
        .collect();
    // As large as scores, and some much larger or smaller.
    let sinks = random.floats(shape.n_heads, 8.0);
    let sinks = (random.next().is_multiple_of(2)).then_some(sinks);
    let sinks_memory = sinks.as_ref().map(|sinks| Memory::of(sinks));
    let mut want = vec![0.0; q.len()];
    cpu.attention(shape, &of_cpu, sinks.as_deref(), &q, &mut want);

    let cap = shape.softcap.unwrap_or(0.0);
    let params = AttendParams {
        q: q_memory.address(),
        rows: rows_memory.address(),
        slots: slots_memory.address(),
        pool: pool.address(),
        sinks: sinks_memory.as_ref().map_or(0, Memory::address),
        page_bytes: page_bytes as u64,
        key_bytes: key_bytes as u64,
        n_rows: n_rows as u32,
        n_heads: shape.n_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim: hd as u32,
        window: shape.window.map_or(0, |window| window as u32),
        scale: shape.scale,
        cap,
        inverse_cap: if cap > 0.0 { 1.0 / cap } else { 0.0 },
        is_chunked: u32::from(shape.is_chunked),
        ..AttendParams::default()
    }
    .tile();
    // One page after another; if there are few rows, also with blocks for each page, of which there may be too many.
    let most_pages = sequences.iter().map(|s| (s.n_before + s.n_rows).div_ceil(PAGE)).max().unwrap_or(0) as u32;
    for n_pages in if params.tokens == 1 { vec![0, most_pages, most_pages + 2] } else { vec![0] } {
        let mut to = Memory::new(q.len());
        let params = AttendParams { n_pages, to: to.address(), ..params };
        let mut parts = Memory::<f32>::new(params.parts_len());
        let params = AttendParams { parts: parts.address(), ..params };
        for launch in params.launches(T::TYPE) {
            run(&launch, &params);
        }
        assert_bits(to.get(), &want, &format!("{}, {shape:?}, {sequences:?}, {n_pages} pages at once", T::TYPE));
        to.check();
        parts.check();
    }
    Some(())
}

fn store<T: Bytes>(
    cpu: &fewbit_kernels::Cpu,
    shape: &AttentionShape,
    cache: &mut Cache<T>,
    first: usize,
    k: &[f32],
    v: &[f32],
) {
    let pages = cache.keys.iter_mut().zip(&mut cache.values);
    let mut pages: Vec<_> = pages.map(|(keys, values)| KvPageMut { keys, values }).collect();
    cpu.store_kv(shape, &mut pages, first, k, v);
}

fn sequence(n_before: usize, n_rows: usize) -> Sequence {
    Sequence { n_before, n_rows }
}

/// Shapes of heads with all numbers of rows, pages and sequences.
fn check_all<T: Bytes>(head_dims: &[usize]) {
    let random = &mut Random(1);
    let [small, middle, large] = [0, head_dims.len() / 2, head_dims.len() - 1].map(|i| head_dims[i]);
    let cases: &[(AttentionShape, &[Sequence])] = &[
        // The first token, the last of a page and the first of the next one.
        (shape(1, 1, small), &[sequence(0, 1)]),
        (shape(2, 2, middle), &[sequence(255, 1)]),
        (shape(4, 2, middle), &[sequence(255, 2)]),
        // Groups of heads of all sizes: whole tiles, parts of one, and more than one.
        (shape(3, 1, small), &[sequence(300, 1)]),
        (shape(9, 1, middle), &[sequence(530, 1)]),
        (shape(8, 1, small), &[sequence(100, 9)]),
        (shape(2, 1, large), &[sequence(513, 1)]),
        // Decode of several sequences, with caches of different lengths.
        (shape(4, 2, small), &[sequence(0, 1), sequence(600, 1), sequence(17, 1)]),
        (shape(4, 1, small), &[sequence(512, 2), sequence(255, 3), sequence(0, 2)]),
        // Prefill across pages; the tiles of a batch end in the middle of sequences.
        (shape(4, 2, middle), &[sequence(240, 33)]),
        (shape(2, 2, small), &[sequence(0, 13), sequence(250, 1), sequence(252, 11)]),
        // Windows: within a page, across pages, across tiles.
        (AttentionShape { window: Some(40), ..shape(2, 1, small) }, &[sequence(0, 50)]),
        (AttentionShape { window: Some(7), ..shape(4, 2, small) }, &[sequence(258, 10)]),
        (AttentionShape { window: Some(300), ..shape(2, 1, middle) }, &[sequence(700, 1), sequence(20, 1)]),
        (AttentionShape { window: Some(256), ..shape(1, 1, small) }, &[sequence(511, 12)]),
        // Chunks: within a page, across pages, across tiles.
        (AttentionShape { window: Some(40), is_chunked: true, ..shape(2, 1, small) }, &[sequence(0, 50)]),
        (AttentionShape { window: Some(7), is_chunked: true, ..shape(4, 2, small) }, &[sequence(258, 10)]),
        (AttentionShape { window: Some(300), is_chunked: true, ..shape(2, 1, middle) }, &[sequence(599, 1)]),
        (AttentionShape { window: Some(300), is_chunked: true, ..shape(2, 1, middle) }, &[sequence(598, 3)]),
        (AttentionShape { softcap: Some(5.0), scale: 1.0, ..shape(2, 2, middle) }, &[sequence(260, 1)]),
        (AttentionShape { softcap: Some(5.0), scale: 1.0, ..shape(2, 1, small) }, &[sequence(250, 10)]),
    ];
    for (shape, sequences) in cases {
        if check::<T>(random, shape, sequences).is_none() {
            return;
        }
    }
}

#[test]
fn attention_in_half_precision_has_the_bits_of_the_cpu() {
    check_all::<f16>(&[5, 40, 64, 288]);
}

#[test]
fn attention_in_full_precision_has_the_bits_of_the_cpu() {
    check_all::<f32>(&[16, 33, 128]);
}

#[test]
fn attention_in_blocks_of_bytes_has_the_bits_of_the_cpu() {
    check_all::<Q8>(&[32, 96, 288]);
}

/// Sequences with a common past read the same slots.
#[test]
fn a_page_of_two_sequences_is_read_by_both() {
    let random = &mut Random(2);
    let (cpu, shape) = (cpu(), shape(4, 2, 32));
    let mut cache = Cache::<f16> {
        keys: vec![vec![f16::ZERO; shape.key_elems::<f16>()]; 2],
        values: vec![vec![f16::ZERO; shape.value_elems::<f16>()]; 2],
    };
    let n = 300;
    let (k, v) = (random.floats(n * 64, 1.0), random.floats(n * 64, 1.0));
    store(&cpu, &shape, &mut cache, 0, &k, &v);
    let key_bytes = 2 * shape.key_elems::<f16>();
    let page_bytes = key_bytes + 2 * shape.value_elems::<f16>();
    let page = |i: usize| [f16::bytes(&cache.keys[i]), f16::bytes(&cache.values[i])].concat();
    // The second page is in two slots.
    let pool = Memory::of(&[page(1), page(0), page(1)].concat());
    let row = |slots_at| Row { position: n as u32 - 1, first_page: 0, slots_at, sequence: slots_at };
    let (rows, slots) = (Memory::of(&[row(0), row(2)]), Memory::of(&[1u32, 0, 1, 2]));
    let one = random.floats(128, 1.0);
    let q = Memory::of(&[one.clone(), one.clone()].concat());
    let to = Memory::<f32>::new(256);
    let params = AttendParams {
        q: q.address(),
        rows: rows.address(),
        slots: slots.address(),
        pool: pool.address(),
        to: to.address(),
        page_bytes: page_bytes as u64,
        key_bytes: key_bytes as u64,
        n_rows: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        scale: shape.scale,
        ..AttendParams::default()
    }
    .tile();
    for launch in params.launches(KvType::F16) {
        if run(&launch, &params).is_none() {
            return;
        }
    }
    let pages = [0, 1].map(|i| KvPage { keys: &cache.keys[i][..], values: &cache.values[i][..] }).to_vec();
    let mut want = vec![0.0; 128];
    cpu.attention(&shape, &[AttentionSequence { first_position: n - 1, n_tokens: 1, pages }], None, &one, &mut want);
    assert_bits(to.get(), &[want.clone(), want].concat(), "both");
}
