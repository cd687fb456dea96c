//! The order of the launches of a step.

/// The launches of a plan, each with its index, and between them those of adapters, which have none: each comes before the
/// launch at its index. Those of adapters are in the order of their indices.
pub(crate) fn in_order<'a, D>(
    launches: &'a [D],
    adapted: &'a [(usize, D)],
) -> impl Iterator<Item = (Option<usize>, &'a D)> {
    let (mut launches, mut adapted) = (launches.iter().enumerate().peekable(), adapted.iter().peekable());
    std::iter::from_fn(move || {
        let next = launches.peek().map_or(usize::MAX, |(at, _)| *at);
        match adapted.next_if(|(before, _)| *before <= next) {
            Some((_, adapter)) => Some((None, adapter)),
            None => launches.next().map(|(at, launch)| (Some(at), launch)),
        }
    })
}
