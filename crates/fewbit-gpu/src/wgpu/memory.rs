//! How much memory a device has, and how much of it is free.
//!
//! WebGPU does not tell. On Vulkan, the extension `VK_EXT_memory_budget` does: the budget of a heap is what this process
//! may use of it at the moment, other processes considered, and its usage is what it uses already. Without the
//! extension, only the size of the heap is known. On Metal neither is read; the devices of Apple's computers share the
//! CPU's memory, so what the operating system has available counts.

use fewbit_model::DeviceMemory;

/// The memory of an adapter: of its largest heap that is local to the device.
#[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
#[allow(unsafe_code)]
pub(super) fn of(adapter: &wgpu::Adapter) -> DeviceMemory {
    use ash::{ext, vk};

    // SAFETY: the adapter is only asked, and outlives the guard.
    let Some(hal) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else { return DeviceMemory::default() };
    let (instance, device) = (hal.shared_instance().raw_instance(), hal.raw_physical_device());
    // SAFETY: the physical device is one of this instance, and both exist as long as `hal`.
    let extensions = unsafe { instance.enumerate_device_extension_properties(device) }.unwrap_or_default();
    let name = Ok(ext::memory_budget::NAME);
    let has_budget = extensions.iter().any(|extension| extension.extension_name_as_c_str() == name);
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if has_budget {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: as above. wgpu requires Vulkan 1.1 or the extension that this function is from, and asks it in the same
    // way. The chain has one structure, which the device supports.
    unsafe { instance.get_physical_device_memory_properties2(device, &mut properties) };
    let memory = properties.memory_properties;
    let n_heaps = memory.memory_heaps.len().min(memory.memory_heap_count as usize);
    let is_local = |i: &usize| memory.memory_heaps[*i].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    let Some(heap) = (0..n_heaps).filter(is_local).max_by_key(|&i| memory.memory_heaps[i].size) else {
        return DeviceMemory::default();
    };
    let free = has_budget.then(|| budget.heap_budget[heap].saturating_sub(budget.heap_usage[heap]));
    DeviceMemory::new(free, Some(memory.memory_heaps[heap].size))
}

/// The memory of an adapter, which is the computer's.
#[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android")))]
pub(super) fn of(_: &wgpu::Adapter) -> DeviceMemory {
    DeviceMemory::new(fewbit_model::available_bytes(), None)
}
