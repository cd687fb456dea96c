//! How long each kernel takes, while that is measured.

use super::lock;
use crate::plan::{Op, Plan};
use fewbit_model::KernelTime;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The sums of all launches since timing began, by the name of the kernel; `None` while nothing is measured.
#[derive(Default)]
pub(crate) struct Timing(Mutex<Option<BTreeMap<Arc<str>, KernelTime>>>);

/// What the launches of a step are counted as.
pub(crate) struct Labels {
    of_launches: Vec<Label>,
    of_adapters: Label,
}

impl Labels {
    /// The labels of launches of these operations, by their indices in the plan, of which each may have several that
    /// follow each other. `weight_bytes` are those that the launches of an operation read together.
    pub(crate) fn new(plan: &Plan, ops: &[usize], weight_bytes: impl Fn(&Op) -> u64) -> Self {
        let label = |(launch, &op): (usize, &usize)| {
            let is_first = launch == 0 || ops[launch - 1] != op;
            let op = &plan.ops[op];
            Label::new(plan, op, if is_first { weight_bytes(op) } else { 0 })
        };
        let of_adapters = Label { kernel: "Adapt".into(), weight_bytes: 0 };
        Self { of_launches: ops.iter().enumerate().map(label).collect(), of_adapters }
    }

    /// That of a launch; without an index, that of launches of adapters.
    pub(crate) fn get(&self, launch: Option<usize>) -> &Label {
        launch.map_or(&self.of_adapters, |launch| &self.of_launches[launch])
    }
}

/// What a launch is counted as.
pub(crate) struct Label {
    /// Its operation, of products with the weight type and the shape.
    kernel: Arc<str>,
    /// Bytes of weights that it reads, as far as that is known.
    weight_bytes: u64,
}

impl Label {
    fn new(plan: &Plan, op: &Op, weight_bytes: u64) -> Self {
        // Its name in the plan, and nothing of its fields.
        let debug = format!("{op:?}");
        let name = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let kernel = match op {
            Op::Product { w, planes, .. } => format!("{name} {} {} x {}, planes: {planes}", w.ty, w.n_rows, w.n_cols),
            Op::ExpertProduct { w, .. } => format!("{name} {} {} x {}", w.ty, w.n_rows, w.n_cols),
            Op::Norm { from, .. } | Op::NormHeads { of: from, .. } => format!("{name} {}", plan.shape(*from).width),
            Op::Quantize { from, .. } | Op::Gate { gate: from, .. } => format!("{name} {}", plan.shape(*from).width),
            _ => name.to_owned(),
        };
        Self { kernel: kernel.into(), weight_bytes }
    }
}

impl Timing {
    /// Begins anew.
    pub(crate) fn start(&self) {
        *lock(&self.0) = Some(BTreeMap::new());
    }

    /// Ends it, and returns the sums, the longest first.
    pub(crate) fn stop(&self) -> Vec<KernelTime> {
        let mut times: Vec<_> = lock(&self.0).take().unwrap_or_default().into_values().collect();
        times.sort_by_key(|time| std::cmp::Reverse(time.time));
        times
    }

    pub(crate) fn is_on(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Counts one launch.
    pub(crate) fn add(&self, label: &Label, time: Duration) {
        let mut times = lock(&self.0);
        let Some(times) = &mut *times else { return };
        let sum = times.entry(Arc::clone(&label.kernel)).or_insert_with(|| KernelTime::new(&*label.kernel));
        sum.n_launches += 1;
        sum.time += time;
        sum.weight_bytes += label.weight_bytes;
    }
}
