//! The tokens so far, and the penalties that depend on them.

use std::collections::HashMap;
use std::sync::Arc;

use super::settings::{Dry, Penalties};

/// The texts of a vocabulary's tokens, for sampling settings that look at text.
pub trait TokenTexts: Send + Sync {
    /// The bytes of a token; empty for special tokens.
    fn bytes(&self, token: u32) -> &[u8];
}

impl TokenTexts for fewbit_tokenizer::Tokenizer {
    fn bytes(&self, token: u32) -> &[u8] {
        self.token_bytes(token)
    }
}

/// The tokens of the prompt and of the generated text, with the state of the penalties.
pub(super) struct History {
    tokens: Vec<u32>,
    penalties: Option<Repeats>,
    dry: Option<DryState>,
}

impl History {
    pub(super) fn new(penalties: &Penalties, dry: &Dry, texts: Option<Arc<dyn TokenTexts>>) -> Self {
        Self {
            tokens: Vec::new(),
            penalties: (!penalties.is_off()).then(|| Repeats { settings: *penalties, counts: HashMap::new() }),
            dry: (!dry.is_off()).then(|| DryState::new(dry.clone(), texts)),
        }
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether any penalty is on.
    pub(super) fn is_active(&self) -> bool {
        self.penalties.is_some() || self.dry.is_some()
    }

    /// Clears everything.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        if let Some(repeats) = &mut self.penalties {
            repeats.counts.clear();
        }
        if let Some(dry) = &mut self.dry {
            dry.clear();
        }
    }

    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(repeats) = &mut self.penalties {
            repeats.push(&self.tokens);
        }
        if let Some(dry) = &mut self.dry {
            dry.push(token);
        }
    }

    /// Applies the penalties to the logits `[n_vocab]`.
    pub(super) fn apply(&mut self, logits: &mut [f32]) {
        if let Some(repeats) = &self.penalties {
            repeats.apply(logits);
        }
        if let Some(dry) = &mut self.dry {
            dry.apply(&self.tokens, logits);
        }
    }
}

/// How often each token occurs in the window of the latest tokens.
struct Repeats {
    settings: Penalties,
    counts: HashMap<u32, u32>,
}

impl Repeats {
    /// Counts the last one of `tokens`, and removes the one that leaves the window.
    fn push(&mut self, tokens: &[u32]) {
        let Some((&new, before)) = tokens.split_last() else { return };
        *self.counts.entry(new).or_default() += 1;
        if let Some(at) = before.len().checked_sub(self.settings.last_n)
            && let Some(count) = self.counts.get_mut(&tokens[at])
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&tokens[at]);
            }
        }
    }

    fn apply(&self, logits: &mut [f32]) {
        let Penalties { repeat, presence, frequency, .. } = self.settings;
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                // Dividing a negative logit would make the token more probable.
                let scaled = if *logit <= 0.0 { *logit * repeat } else { *logit / repeat };
                *logit = scaled - (count as f32 * frequency + presence);
            }
        }
    }
}

/// DRY: for each token that would continue a repetition, the length of the longest sequence that it would repeat.
///
/// The end of the text is compared with every earlier place by the Z-algorithm on the reversed tokens: `z[k]` is how
/// many of the last tokens also occur right before the last `k` tokens. The token that followed there,
/// `reversed[k - 1]`, would make the repetition longer by one.
struct DryState {
    settings: Dry,
    texts: Option<Arc<dyn TokenTexts>>,
    /// Number of tokens since the last breaker.
    since_breaker: usize,
    /// The end of the text so far that may be a part of a breaker.
    tail: Vec<u8>,
    z: Vec<usize>,
    longest: HashMap<u32, usize>,
}

impl DryState {
    fn new(mut settings: Dry, texts: Option<Arc<dyn TokenTexts>>) -> Self {
        settings.breakers.retain(|breaker| !breaker.is_empty());
        Self { settings, texts, since_breaker: 0, tail: Vec::new(), z: Vec::new(), longest: HashMap::new() }
    }

    fn clear(&mut self) {
        self.since_breaker = 0;
        self.tail.clear();
    }

    fn push(&mut self, token: u32) {
        self.since_breaker += 1;
        let Some(texts) = &self.texts else { return };
        let Some(longest) = self.settings.breakers.iter().map(String::len).max() else { return };
        self.tail.extend_from_slice(texts.bytes(token));
        if self.settings.breakers.iter().any(|breaker| contains(&self.tail, breaker.as_bytes())) {
            self.since_breaker = 0;
        }
        // The rest is too short to hold a whole breaker, so none is found twice.
        let shortest_kept = self.tail.len().min(longest - 1);
        self.tail.drain(..self.tail.len() - shortest_kept);
        while self.settings.breakers.iter().any(|breaker| contains(&self.tail, breaker.as_bytes())) {
            self.tail.remove(0);
        }
    }

    fn is_breaker(&self, token: u32) -> bool {
        let Some(texts) = &self.texts else { return false };
        let bytes = texts.bytes(token);
        self.settings.breakers.iter().any(|breaker| contains(bytes, breaker.as_bytes()))
    }

    fn apply(&mut self, tokens: &[u32], logits: &mut [f32]) {
        let window = &tokens[tokens.len().saturating_sub(self.settings.last_n)..];
        let allowed = self.settings.allowed_length;
        let limit = self.since_breaker.min(window.len());
        if limit < allowed || window.len() <= allowed {
            return;
        }
        reversed_z(window, &mut self.z);
        self.longest.clear();
        for (k, &z) in self.z.iter().enumerate().skip(1) {
            let length = z.min(limit);
            if length >= allowed {
                let follows = window[window.len() - k];
                let longest = self.longest.entry(follows).or_default();
                *longest = length.max(*longest);
            }
        }
        for (&token, &length) in &self.longest {
            if self.is_breaker(token) {
                continue;
            }
            let power = libm::pow(f64::from(self.settings.base), (length - allowed) as f64);
            // Beyond the largest float, the token becomes impossible, as intended.
            let penalty = (f64::from(self.settings.multiplier) * power) as f32;
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= penalty;
            }
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// `z[k]`: the longest common prefix of the reversed tokens and the reversed tokens from `k` on. `z[0]` is 0.
fn reversed_z(tokens: &[u32], z: &mut Vec<usize>) {
    let n = tokens.len();
    let at = |i: usize| tokens[n - 1 - i];
    z.clear();
    z.resize(n, 0);
    // The match that reaches furthest: `left..right` equals `0..right - left`.
    let (mut left, mut right) = (0, 0);
    for k in 1..n {
        let mut length = if k < right { z[k - left].min(right - k) } else { 0 };
        while k + length < n && at(length) == at(k + length) {
            length += 1;
        }
        z[k] = length;
        if k + length > right {
            (left, right) = (k, k + length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Letters;

    impl TokenTexts for Letters {
        fn bytes(&self, token: u32) -> &[u8] {
            // Tokens 0.. are letters; 100 is a pair of letters with a newline between them.
            const LETTERS: &[u8] = b"abcdefghij\n:";
            match token {
                100 => b"a\nb",
                token => LETTERS.get(token as usize..token as usize + 1).unwrap_or_default(),
            }
        }
    }

    fn dry(last_n: usize, breakers: &[&str]) -> Dry {
        Dry { last_n, breakers: breakers.iter().map(|&text| text.to_owned()).collect(), ..Dry::new(1.0) }
    }

    /// What is subtracted from each logit.
    fn penalties(settings: Dry, tokens: &[u32]) -> Vec<f32> {
        let mut history = History::new(&Penalties::default(), &settings, Some(Arc::new(Letters)));
        for &token in tokens {
            history.push(token);
        }
        let mut logits = vec![0.0; 12];
        history.apply(&mut logits);
        logits.into_iter().map(|logit: f32| -logit).collect()
    }

    #[test]
    fn dry_penalizes_the_longest_repetition() {
        // The end `a b c` occurred with `d` after it, and `b c` with `e`: one token beyond the two allowed, and none.
        let found = penalties(dry(usize::MAX, &[]), &[0, 1, 2, 3, 1, 2, 4, 0, 1, 2]);
        assert_eq!(found[3], 1.75);
        assert_eq!(found[4], 1.0);
        assert_eq!(found.iter().filter(|penalty| **penalty != 0.0).count(), 2);
        // In a window of seven tokens only the shorter one is seen.
        let found = penalties(dry(7, &[]), &[0, 1, 2, 3, 1, 2, 4, 0, 1, 2]);
        assert_eq!((found[3], found[4]), (0.0, 1.0));
    }

    #[test]
    fn dry_sequences_end_at_breakers() {
        let text = [0, 1, 2, 3, 4, 0, 1, 2];
        assert_eq!(penalties(dry(usize::MAX, &["\n"]), &text)[3], 1.75);
        // A breaker inside the repeated sequence leaves two tokens of it, after the last token none.
        assert_eq!(penalties(dry(usize::MAX, &["a"]), &text)[3], 1.0);
        assert_eq!(penalties(dry(usize::MAX, &["c"]), &text)[3], 0.0);
        // Of two tokens, and inside one.
        assert_eq!(penalties(dry(usize::MAX, &["ab"]), &text)[3], 0.0);
        assert_eq!(penalties(dry(usize::MAX, &["\n"]), &[1, 2, 3, 100, 1, 2])[3], 1.0);
        // The breaker itself is never penalized.
        assert_eq!(penalties(dry(usize::MAX, &["d"]), &text)[3], 0.0);
    }

    #[test]
    fn penalties_count_only_the_window() {
        let settings = Penalties { repeat: 2.0, presence: 0.5, frequency: 0.25, last_n: 4 };
        let mut history = History::new(&settings, &Dry::default(), None);
        for token in [3, 0, 1, 0, 2] {
            history.push(token);
        }
        let mut logits = [4.0, -4.0, 0.0, 1.0, 1.0];
        history.apply(&mut logits);
        // 3 has left the window, 4 never was there.
        assert_eq!(logits, [4.0 / 2.0 - 1.0, -4.0 * 2.0 - 0.75, -0.75, 1.0, 1.0]);
        history.clear();
        let mut logits = [4.0; 5];
        history.apply(&mut logits);
        assert_eq!(logits, [4.0; 5]);
    }

    proptest! {
        #[test]
        fn reversed_z_equals_direct_comparison(tokens in proptest::collection::vec(0..3_u32, 0..40)) {
            let mut z = Vec::new();
            reversed_z(&tokens, &mut z);
            let reversed: Vec<u32> = tokens.iter().rev().copied().collect();
            for (k, z) in z.into_iter().enumerate().skip(1) {
                prop_assert_eq!(z, reversed.iter().zip(&reversed[k..]).take_while(|(a, b)| a == b).count());
            }
        }

        #[test]
        fn breakers_are_found_across_token_boundaries(
            tokens in proptest::collection::vec(0..3_u32, 0..30),
            breakers in proptest::collection::vec("[abc]{0,3}", 0..3),
        ) {
            let texts: Vec<&str> = breakers.iter().map(String::as_str).collect();
            let mut state = DryState::new(dry(usize::MAX, &texts), Some(Arc::new(Letters)));
            let mut bytes = Vec::new();
            // Leftmost first, and none that overlaps the one before.
            let (mut from, mut expected) = (0, 0);
            for &token in &tokens {
                state.push(token);
                bytes.extend_from_slice(Letters.bytes(token));
                expected += 1;
                let found = breakers.iter().any(|b| !b.is_empty() && contains(&bytes[from..], b.as_bytes()));
                if found {
                    expected = 0;
                }
                while breakers.iter().any(|b| !b.is_empty() && contains(&bytes[from..], b.as_bytes())) {
                    from += 1;
                }
                prop_assert_eq!(state.since_breaker, expected);
            }
        }
    }
}
