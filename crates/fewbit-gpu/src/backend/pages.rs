//! KV cache pages of a segment in device memory. Each layer has one buffer of slots, and each slot is a page in the
//! layout of the CPU.
//!
//! A page has the same slot in all layers. Buffers grow by doubling, and are copied on the device then. Slots of
//! dropped pages are reused and cleared first, so that a saved page never contains data of another sequence.

use super::{Memory, Part, lock};
use fewbit_model::{DeviceError, KvType, ModelConfig, ModelError, StatePage, StateStore, attention_shape};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The initial number of slots.
const FIRST_SLOTS: usize = 4;

/// The KV cache pages of some layers.
pub(crate) struct Pages<M: Memory> {
    memory: Arc<M>,
    /// For each layer, the bytes of the keys and of the values in a page.
    layers: Vec<[u64; 2]>,
    /// Bytes that must stay free for the buffers of steps.
    reserved_bytes: u64,
    pools: Arc<Mutex<Pools<M::Buffer>>>,
    free: Free,
}

/// The free slots.
type Free = Arc<Mutex<Vec<u32>>>;

/// The buffers of all layers.
struct Pools<B> {
    buffers: Vec<B>,
    n_slots: usize,
    /// Counts how often the buffers were replaced.
    generation: u64,
}

/// A page. Dropping it frees its slot.
pub(crate) struct Slot {
    index: u32,
    free: Free,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.free).push(self.index);
    }
}

/// The slot of a page, which must belong to this device.
pub(crate) fn slot_of(page: &StatePage) -> u32 {
    page.downcast_ref::<Slot>().expect("a page of this segment").index
}

impl<M: Memory> Pages<M> {
    /// No pages yet, of these layers. Growing leaves `reserved_bytes` of the device's memory free.
    pub(crate) fn new(
        memory: &Arc<M>,
        config: &ModelConfig,
        ty: KvType,
        layers: Range<usize>,
        reserved_bytes: u64,
    ) -> Self {
        let of = |layer| {
            if !config.has_keys_values(layer) {
                return [0, 0];
            }
            let (keys, values) = ty.page_elems(&attention_shape(config, layer));
            [keys, values].map(|n| (n * ty.elem_bytes()) as u64)
        };
        let pools = Pools { buffers: Vec::new(), n_slots: 0, generation: 0 };
        let (layers, pools) = (layers.map(of).collect(), Arc::new(Mutex::new(pools)));
        Self { memory: Arc::clone(memory), layers, reserved_bytes, pools, free: Free::default() }
    }

    /// The bytes of the keys and of the values in a page of a layer. The layer is relative to the segment's first.
    pub(crate) fn layer_bytes(&self, layer: usize) -> [u64; 2] {
        self.layers[layer]
    }

    /// The buffers of all layers, and their generation.
    pub(crate) fn buffers(&self) -> (Vec<M::Buffer>, u64) {
        let pools = lock(&self.pools);
        (pools.buffers.clone(), pools.generation)
    }

    /// Takes a free slot, after growing the buffers if needed. Also returns the buffers.
    fn take(&self) -> Result<(Slot, Vec<M::Buffer>), ModelError> {
        let mut pools = lock(&self.pools);
        let index = lock(&self.free).pop();
        let index = match index {
            Some(index) => index,
            None => {
                self.grow(&mut pools)?;
                lock(&self.free).pop().expect("it has just grown")
            }
        };
        Ok((Slot { index, free: Arc::clone(&self.free) }, pools.buffers.clone()))
    }

    /// Makes the buffers larger: twice as large, or if there is no memory for that, by less.
    fn grow(&self, pools: &mut Pools<M::Buffer>) -> Result<(), ModelError> {
        let n = pools.n_slots;
        let sizes = [2 * n, n + n / 2, n + n / 4, n + 1].map(|size| size.max(FIRST_SLOTS));
        let mut result = Ok(());
        for (i, &n_slots) in sizes.iter().enumerate() {
            if i > 0 && n_slots >= sizes[i - 1] {
                continue;
            }
            result = self.resize(pools, n_slots);
            match &result {
                Err(error) if matches!(error.device_error(), Some(DeviceError::OutOfMemory { .. })) => {}
                _ => break,
            }
        }
        result
    }

    fn resize(&self, pools: &mut Pools<M::Buffer>, n_slots: usize) -> Result<(), ModelError> {
        let memory = &*self.memory;
        let largest = self.layers.iter().map(|[keys, values]| keys + values).max().unwrap_or(0);
        let most = (memory.largest_buffer() / largest.max(1)).min(u64::from(u32::MAX)) as usize;
        let n_slots = n_slots.min(most);
        if n_slots <= pools.n_slots {
            let needed_bytes = largest * (pools.n_slots as u64 + 1);
            let free_bytes = Some(memory.largest_buffer());
            return Err(memory.error(DeviceError::OutOfMemory { needed_bytes, free_bytes }));
        }
        // What is bound to the old buffers holds them until the next step, so both count.
        let new_bytes = self.layers.iter().map(|[keys, values]| (keys + values) * n_slots as u64);
        let needed_bytes = new_bytes.sum::<u64>() + self.reserved_bytes;
        if let Some(free) = memory.memory().free_bytes.filter(|&free| needed_bytes > free) {
            return Err(memory.error(DeviceError::OutOfMemory { needed_bytes, free_bytes: Some(free) }));
        }
        // Layer by layer, so that only one of them is there twice. Those that became larger before memory ran out stay
        // so, until the others follow.
        for (i, [keys, values]) in self.layers.iter().enumerate() {
            let bytes = (keys + values) * n_slots as u64;
            match pools.buffers.get(i) {
                Some(old) if M::size(old) >= bytes => {}
                Some(old) => {
                    let new = memory.buffer(bytes)?;
                    memory.copy(&[(Part::of(old, 0, M::size(old)), Part::of(&new, 0, M::size(old)))])?;
                    memory.wait()?;
                    pools.buffers[i] = new;
                    // What is bound is bound to the old buffer.
                    pools.generation += 1;
                }
                None => {
                    pools.buffers.push(memory.buffer(bytes)?);
                    pools.generation += 1;
                }
            }
        }
        lock(&self.free).extend((pools.n_slots as u32..n_slots as u32).rev());
        pools.n_slots = n_slots;
        memory.check()
    }

    /// The part of each layer's buffer that is this slot, of layers that have keys and values.
    fn parts<'a>(&'a self, buffers: &'a [M::Buffer], slot: u32) -> impl Iterator<Item = Part<'a, M::Buffer>> {
        buffers.iter().zip(&self.layers).filter(|(_, layer)| **layer != [0, 0]).map(move |(buffer, [keys, values])| {
            let bytes = keys + values;
            Part::of(buffer, u64::from(slot) * bytes, bytes)
        })
    }
}

impl<M: Memory> StateStore for Pages<M> {
    fn page_bytes(&self) -> usize {
        self.layers.iter().map(|[keys, values]| (keys + values) as usize).sum()
    }

    fn saved_bytes(&self) -> usize {
        self.page_bytes()
    }

    fn new_page(&self) -> Result<StatePage, ModelError> {
        let (slot, buffers) = self.take()?;
        self.memory.clear(&self.parts(&buffers, slot.index).collect::<Vec<_>>())?;
        Ok(Box::new(slot))
    }

    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError> {
        let (slot, buffers) = self.take()?;
        let parts = self.parts(&buffers, slot_of(page)).zip(self.parts(&buffers, slot.index));
        self.memory.copy(&parts.collect::<Vec<_>>())?;
        Ok(Box::new(slot))
    }

    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let (buffers, _) = self.buffers();
        for part in self.parts(&buffers, slot_of(page)) {
            self.memory.read(part, |bytes| out.extend_from_slice(bytes))?;
        }
        Ok(())
    }

    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError> {
        let (slot, buffers) = self.take()?;
        let mut rest = bytes;
        for part in self.parts(&buffers, slot.index) {
            let (own, behind) = rest.split_at(part.bytes as usize);
            self.memory.write(part, own)?;
            rest = behind;
        }
        self.memory.flush()?;
        Ok(Box::new(slot))
    }
}
