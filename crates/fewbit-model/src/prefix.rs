//! Beginnings of sequences that have been computed: a radix tree over token ids, whose edges are pages.
//!
//! An edge is the tokens of one page, all [`PAGE`] of them or, at a leaf, fewer. A sequence that begins like
//! one in the tree takes over its pages; the page in which the two part is taken over too, and copied by the
//! cache when it is first appended to. That exactness costs nothing is the arithmetic contract: keys and values
//! depend on the tokens before them and on the adapters in use, and on nothing else: each set of adapters has a
//! tree of its own.

use crate::cache::KvCache;
use crate::lora::{LoraKey, LoraSet};
use crate::pages::{Page, PageKind};
use fewbit_kernels::PAGE;
use std::sync::Arc;

/// A tree of prefixes. It keeps their pages alive until they are [evicted](Self::evict).
pub struct PrefixTree {
    kind: Arc<PageKind>,
    /// The roots of each set of adapters; none is empty.
    trees: Vec<(LoraKey, Vec<Node>)>,
    n_pages: usize,
    /// Counts uses, to know which is the latest.
    clock: u64,
}

struct Node {
    /// Fewer than [`PAGE`] only in a leaf.
    tokens: Vec<u32>,
    page: Page,
    children: Vec<Node>,
    used: u64,
}

impl PrefixTree {
    pub(crate) fn new(kind: Arc<PageKind>) -> Self {
        Self { kind, trees: Vec::new(), n_pages: 0, clock: 0 }
    }

    /// Pages that the tree holds.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// A cache that holds the longest prefix of `tokens` that is known with these adapters. It may be empty.
    pub fn find(&mut self, tokens: &[u32], loras: &LoraSet) -> KvCache {
        self.clock += 1;
        let (mut pages, mut len) = (Vec::new(), 0);
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
            len += n;
            if n < PAGE {
                break;
            }
            nodes = &mut node.children;
        }
        KvCache::from_pages(Arc::clone(&self.kind), loras.clone(), pages, len)
    }

    /// Remembers the pages of `cache`, which holds `tokens` from the first on. What is known already stays as it
    /// is. A cache that has given up pages, because of a sliding window, cannot be remembered.
    pub fn insert(&mut self, tokens: &[u32], cache: &KvCache) {
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
        for (tokens, page) in tokens.chunks(PAGE).zip(pages) {
            let is_related = |node: &Node| node.tokens.starts_with(tokens) || tokens.starts_with(&node.tokens);
            let i = nodes.iter().position(is_related).unwrap_or_else(|| {
                nodes.push(Node { tokens: Vec::new(), page: page.clone(), children: Vec::new(), used: 0 });
                self.n_pages += 1;
                nodes.len() - 1
            });
            let node = &mut nodes[i];
            node.used = self.clock;
            if node.tokens.len() < tokens.len() {
                // New, or a leaf that this sequence goes on from.
                node.tokens = tokens.to_vec();
                node.page = page.clone();
            }
            nodes = &mut nodes[i].children;
        }
    }

    /// Forgets up to `n` pages that nobody else holds, those first that were not used for longest, and returns
    /// how many it forgot.
    pub fn evict(&mut self, n: usize) -> usize {
        let mut evicted = 0;
        while evicted < n && self.evict_oldest() {
            evicted += 1;
        }
        self.n_pages -= evicted;
        evicted
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.trees.clear();
        self.n_pages = 0;
    }

    /// Removes the leaf of all trees that was not used for longest of those that nobody else holds.
    fn evict_oldest(&mut self) -> bool {
        let oldest = self.trees.iter().enumerate().filter_map(|(i, (_, nodes))| Some((i, oldest(nodes)?.1)));
        let Some((i, _)) = oldest.min_by_key(|&(_, used)| used) else { return false };
        let is_removed = evict_oldest(&mut self.trees[i].1);
        if self.trees[i].1.is_empty() {
            self.trees.swap_remove(i);
        }
        is_removed
    }
}

/// Removes the leaf that was not used for longest of those that nobody else holds.
fn evict_oldest(nodes: &mut Vec<Node>) -> bool {
    let Some((i, _)) = oldest(nodes) else { return false };
    if nodes[i].children.is_empty() {
        nodes.swap_remove(i);
        true
    } else {
        evict_oldest(&mut nodes[i].children)
    }
}

/// Which of the nodes has, as itself or below it, the oldest leaf that can go; and when that was used.
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
        f.debug_struct("PrefixTree").field("n_pages", &self.n_pages).finish_non_exhaustive()
    }
}
