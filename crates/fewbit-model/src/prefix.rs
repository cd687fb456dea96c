//! Beginnings of sequences that have been computed already: a radix tree over token ids, whose edges are pages.
//!
//! An edge has the tokens of one page: [`PAGE`] of them or, at a leaf, fewer. A sequence that begins like one in the
//! tree reuses its pages. The page in which the two diverge is reused too, and the cache copies it on the first append.
//! The result is still exact, because keys and values depend only on the preceding tokens and on the adapters in use;
//! each set of adapters has its own tree.
//!
//! In a model with recurrent layers, a prefix is known only where the tree has their state: at some page boundaries, and
//! at the ends of sequences.

use crate::cache::KvCache;
use crate::lora::{LoraKey, LoraSet};
use crate::pages::{Page, PageKind};
use crate::snapshots::Snapshot;
use fewbit_kernels::PAGE;
use std::sync::Arc;

/// A tree of prefixes. It keeps its pages alive until they are [evicted](Self::evict).
pub struct PrefixTree {
    kind: Arc<PageKind>,
    /// The roots for each set of adapters; no list is empty.
    trees: Vec<(LoraKey, Vec<Node>)>,
    /// Nodes, and the states that they have.
    n_nodes: usize,
    n_states: usize,
    /// The generation of the pages: when layers move to another device, all pages become stale.
    generation: u64,
    /// Counts uses, to order them by time.
    clock: u64,
}

struct Node {
    /// Fewer than [`PAGE`] only in a leaf.
    tokens: Vec<u32>,
    page: Page,
    /// States of recurrent layers, after so many of these tokens.
    states: Vec<Snapshot>,
    children: Vec<Node>,
    used: u64,
}

impl PrefixTree {
    pub(crate) fn new(kind: Arc<PageKind>) -> Self {
        let generation = kind.generation();
        Self { kind, trees: Vec::new(), n_nodes: 0, n_states: 0, generation, clock: 0 }
    }

    /// Removes everything if it is stale.
    fn refresh(&mut self) {
        let now = self.kind.generation();
        if now != self.generation {
            self.clear();
            self.generation = now;
        }
    }

    /// Number of pages that the tree holds, with the states of recurrent layers as the pages that they are as large as.
    pub fn n_pages(&self) -> usize {
        self.n_nodes + self.kind.pages_of((self.n_states, 0))
    }

    /// Returns a cache with the longest known prefix of `tokens` for these adapters, which may be empty.
    pub fn find(&mut self, tokens: &[u32], loras: &LoraSet) -> KvCache {
        self.refresh();
        self.clock += 1;
        let (mut pages, mut len) = (Vec::new(), 0);
        let mut last: Option<Snapshot> = None;
        let key = loras.key();
        let mut none = Vec::new();
        let mut nodes = self.trees.iter_mut().find(|(known, _)| *known == key).map_or(&mut none, |(_, nodes)| nodes);
        loop {
            let common = |node: &Node| common_prefix(&node.tokens, &tokens[len..]);
            let Some(node) = nodes.iter_mut().max_by_key(|node| common(node)).filter(|node| common(node) > 0) else {
                break;
            };
            node.used = self.clock;
            let n = common(node);
            pages.push(node.page.clone());
            let within = node.states.iter().filter(|(at, _)| *at <= n).max_by_key(|(at, _)| *at);
            last = within.map(|(at, page)| (len + at, page.clone())).or(last);
            len += n;
            if n < PAGE {
                break;
            }
            nodes = &mut node.children;
        }
        if self.kind.fixed.is_some() {
            len = last.as_ref().map_or(0, |(at, _)| *at);
            pages.truncate(len.div_ceil(PAGE));
        }
        KvCache::from_pages(Arc::clone(&self.kind), loras.clone(), pages, last.into_iter().collect(), len)
    }

    /// Adds the pages of `cache`, which holds `tokens` from the first on. Known prefixes are kept as they are. A cache
    /// that has released pages, because of a sliding window, or that is stale, cannot be added.
    pub fn insert(&mut self, tokens: &[u32], cache: &KvCache) {
        self.refresh();
        if cache.is_stale() {
            return;
        }
        let Some(pages) = cache.all_pages() else { return };
        let tokens = &tokens[..cache.len().min(tokens.len())];
        if tokens.is_empty() {
            return;
        }
        self.clock += 1;
        let key = cache.loras().key();
        let i = self.trees.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            self.trees.push((key, Vec::new()));
            self.trees.len() - 1
        });
        let mut nodes = &mut self.trees[i].1;
        for (index, (tokens, page)) in tokens.chunks(PAGE).zip(pages).enumerate() {
            let is_related = |node: &Node| node.tokens.starts_with(tokens) || tokens.starts_with(&node.tokens);
            let i = nodes.iter().position(is_related).unwrap_or_else(|| {
                let (page, states, children) = (page.clone(), Vec::new(), Vec::new());
                nodes.push(Node { tokens: Vec::new(), page, states, children, used: 0 });
                self.n_nodes += 1;
                nodes.len() - 1
            });
            let node = &mut nodes[i];
            node.used = self.clock;
            if node.tokens.len() < tokens.len() {
                // A new node, or a leaf that this sequence extends.
                node.tokens = tokens.to_vec();
                node.page = page.clone();
            }
            let first = index * PAGE;
            for (at, state) in cache.states().filter(|(at, _)| (first + 1..=first + tokens.len()).contains(at)) {
                let is_end = *at == cache.len() || *at == first + PAGE;
                if is_end && node.states.iter().all(|(known, _)| first + known != *at) {
                    node.states.push((at - first, state.clone()));
                    self.n_states += 1;
                    // One within the page, the latest, and that at its end.
                    if node.states.len() > 2 {
                        let oldest = node.states.iter().position(|(at, _)| *at < PAGE).unwrap_or(0);
                        node.states.remove(oldest);
                        self.n_states -= 1;
                    }
                }
            }
            nodes = &mut nodes[i].children;
        }
    }

    /// Removes up to `n` pages without other holders, least recently used first, and returns the number of removed
    /// pages.
    pub fn evict(&mut self, n: usize) -> usize {
        let mut evicted = 0;
        while evicted < n
            && let Some(n_states) = self.evict_oldest()
        {
            evicted += 1 + self.kind.pages_of((n_states, 0));
            self.n_nodes -= 1;
            self.n_states -= n_states;
        }
        evicted
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.trees.clear();
        (self.n_nodes, self.n_states) = (0, 0);
    }

    /// Removes the least recently used leaf, in all trees, that has no other holder; returns how many states it had.
    fn evict_oldest(&mut self) -> Option<usize> {
        let oldest = self.trees.iter().enumerate().filter_map(|(i, (_, nodes))| Some((i, oldest(nodes)?.1)));
        let (i, _) = oldest.min_by_key(|&(_, used)| used)?;
        let removed = evict_oldest(&mut self.trees[i].1);
        if self.trees[i].1.is_empty() {
            self.trees.swap_remove(i);
        }
        removed
    }
}

/// Removes the least recently used leaf that has no other holder, and returns how many states it had.
fn evict_oldest(nodes: &mut Vec<Node>) -> Option<usize> {
    let (i, _) = oldest(nodes)?;
    if nodes[i].children.is_empty() {
        Some(nodes.swap_remove(i).states.len())
    } else {
        evict_oldest(&mut nodes[i].children)
    }
}

/// Index of the node that is or contains the least recently used removable leaf, and the time of that leaf's last use.
fn oldest(nodes: &[Node]) -> Option<(usize, u64)> {
    let of = |node: &Node| match node.children.is_empty() {
        true => (!node.page.is_shared()).then_some(node.used),
        false => oldest(&node.children).map(|(_, used)| used),
    };
    nodes.iter().enumerate().filter_map(|(i, node)| Some((i, of(node)?))).min_by_key(|&(_, used)| used)
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl std::fmt::Debug for PrefixTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixTree").field("n_pages", &self.n_pages()).finish_non_exhaustive()
    }
}
