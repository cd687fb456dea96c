//! KV cache pages of a segment in device memory. Each layer has one buffer of slots, and each slot is a page in the
//! layout of the CPU.
//!
//! A page has the same slot in all layers. Buffers grow by doubling, and are copied on the device then. Slots of
//! dropped pages are reused and cleared first, so that a saved page never contains data of another sequence.

use super::gpu::{Gpu, lock};
use fewbit_model::{DeviceError, KvType, ModelConfig, ModelError, StatePage, StateStore, attention_shape};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The initial number of slots.
const FIRST_SLOTS: usize = 4;

/// The KV cache pages of some layers.
pub(super) struct Pages {
    gpu: Arc<Gpu>,
    /// For each layer, the bytes of the keys and of the values in a page.
    layers: Vec<[u64; 2]>,
    /// Bytes that must stay free for the buffers of steps.
    reserved_bytes: u64,
    pools: Arc<Mutex<Pools>>,
}

/// The buffers of all layers, and the free slots.
struct Pools {
    buffers: Vec<wgpu::Buffer>,
    n_slots: usize,
    free: Vec<u32>,
    /// Counts how often the buffers were replaced.
    generation: u64,
}

/// A page. Dropping it frees its slot.
pub(super) struct Slot {
    index: u32,
    pools: Arc<Mutex<Pools>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.pools).free.push(self.index);
    }
}

/// The slot of a page, which must belong to this device.
pub(super) fn slot_of(page: &StatePage) -> u32 {
    page.downcast_ref::<Slot>().expect("a page of this segment").index
}

impl Pages {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        config: &ModelConfig,
        ty: KvType,
        layers: Range<usize>,
        reserved_bytes: u64,
    ) -> Self {
        let of = |layer| {
            let (keys, values) = ty.page_elems(&attention_shape(config, layer));
            [keys, values].map(|n| (n * ty.elem_bytes()) as u64)
        };
        let pools = Pools { buffers: Vec::new(), n_slots: 0, free: Vec::new(), generation: 0 };
        let (layers, pools) = (layers.map(of).collect(), Arc::new(Mutex::new(pools)));
        Self { gpu: Arc::clone(gpu), layers, reserved_bytes, pools }
    }

    /// The bytes of the keys and of the values in a page of a layer. The layer is relative to the segment's first.
    pub(super) fn layer_bytes(&self, layer: usize) -> [u64; 2] {
        self.layers[layer]
    }

    /// The buffers of all layers, and their generation.
    pub(super) fn buffers(&self) -> (Vec<wgpu::Buffer>, u64) {
        let pools = lock(&self.pools);
        (pools.buffers.clone(), pools.generation)
    }

    /// Takes a free slot, after growing the buffers if needed. Also returns the buffers.
    fn take(&self) -> Result<(Slot, Vec<wgpu::Buffer>), ModelError> {
        let mut pools = lock(&self.pools);
        if pools.free.is_empty() {
            self.grow(&mut pools)?;
        }
        let index = pools.free.pop().expect("it has just grown");
        Ok((Slot { index, pools: Arc::clone(&self.pools) }, pools.buffers.clone()))
    }

    /// Makes the buffers larger: twice as large, or if there is no memory for that, by less.
    fn grow(&self, pools: &mut Pools) -> Result<(), ModelError> {
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

    fn resize(&self, pools: &mut Pools, n_slots: usize) -> Result<(), ModelError> {
        let largest = self.layers.iter().map(|[keys, values]| keys + values).max().unwrap_or(0);
        let most = (self.gpu.max_binding() / largest.max(1)) as usize;
        let n_slots = n_slots.min(most);
        if n_slots <= pools.n_slots {
            let needed_bytes = largest * (pools.n_slots as u64 + 1);
            let free_bytes = Some(self.gpu.max_binding());
            return Err(self.gpu.error(DeviceError::OutOfMemory { needed_bytes, free_bytes }));
        }
        // Dispatches hold the old buffers until the next step, so both count.
        let new_bytes = self.layers.iter().map(|[keys, values]| (keys + values) * n_slots as u64);
        let needed_bytes = new_bytes.sum::<u64>() + self.reserved_bytes;
        if let Some(free) = self.gpu.memory().free_bytes.filter(|&free| needed_bytes > free) {
            return Err(self.gpu.error(DeviceError::OutOfMemory { needed_bytes, free_bytes: Some(free) }));
        }
        // Layer by layer, so that only one of them is there twice. Those that became larger before memory ran out stay
        // so, until the others follow.
        for (i, [keys, values]) in self.layers.iter().enumerate() {
            let bytes = (keys + values) * n_slots as u64;
            match pools.buffers.get(i) {
                Some(old) if old.size() >= bytes => {}
                Some(old) => {
                    let new = self.gpu.buffer(bytes)?;
                    let mut encoder = self.gpu.encoder();
                    encoder.copy_buffer_to_buffer(old, 0, &new, 0, old.size());
                    self.gpu.queue.submit([encoder.finish()]);
                    pools.buffers[i] = new;
                    // Dispatches are bound to the old buffer.
                    pools.generation += 1;
                    self.gpu.wait()?;
                }
                None => {
                    pools.buffers.push(self.gpu.buffer(bytes)?);
                    pools.generation += 1;
                }
            }
        }
        pools.free.extend((pools.n_slots as u32..n_slots as u32).rev());
        pools.n_slots = n_slots;
        self.gpu.check()
    }

    /// The offset and size of a slot in the buffer of each layer, in bytes.
    fn places(&self, slot: u32) -> impl Iterator<Item = (u64, u64)> {
        self.layers.iter().map(move |[keys, values]| (u64::from(slot) * (keys + values), keys + values))
    }
}

impl StateStore for Pages {
    fn page_bytes(&self) -> usize {
        self.layers.iter().map(|[keys, values]| (keys + values) as usize).sum()
    }

    fn saved_bytes(&self) -> usize {
        self.page_bytes()
    }

    fn new_page(&self) -> Result<StatePage, ModelError> {
        let (slot, buffers) = self.take()?;
        let mut encoder = self.gpu.encoder();
        for (buffer, (offset, bytes)) in buffers.iter().zip(self.places(slot.index)) {
            encoder.clear_buffer(buffer, offset, Some(bytes));
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()?;
        Ok(Box::new(slot))
    }

    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError> {
        let (slot, buffers) = self.take()?;
        // WebGPU cannot copy within one buffer, so the copy goes through another.
        let between = self.gpu.buffer(self.places(0).map(|(_, bytes)| bytes).max().unwrap_or(0))?;
        let mut encoder = self.gpu.encoder();
        let places = self.places(slot_of(page)).zip(self.places(slot.index));
        for (buffer, ((from, bytes), (to, _))) in buffers.iter().zip(places) {
            encoder.copy_buffer_to_buffer(buffer, from, &between, 0, bytes);
            encoder.copy_buffer_to_buffer(&between, 0, buffer, to, bytes);
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.check()?;
        Ok(Box::new(slot))
    }

    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let (buffers, _) = self.buffers();
        for (buffer, (offset, bytes)) in buffers.iter().zip(self.places(slot_of(page))) {
            self.gpu.read(self.gpu.encoder(), buffer, offset, bytes, |bytes| out.extend_from_slice(bytes))?;
        }
        Ok(())
    }

    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError> {
        let (slot, buffers) = self.take()?;
        let mut rest = bytes;
        for (buffer, (offset, bytes)) in buffers.iter().zip(self.places(slot.index)) {
            let (own, behind) = rest.split_at(bytes as usize);
            self.gpu.queue.write_buffer(buffer, offset, own);
            rest = behind;
        }
        self.gpu.queue.submit([]);
        self.gpu.check()?;
        Ok(Box::new(slot))
    }
}
