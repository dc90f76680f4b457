//! A set of byte ranges of a file, kept as few as they can be. Pure.

use std::{collections::BTreeMap, ops::Range};

/// Ranges that neither overlap nor touch, each from its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds a range; returns what of it was not there before.
    pub(crate) fn insert(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let (mut start, mut end) = (range.start, range.end);
        let touching: Vec<Range<u64>> = self
            .0
            .range(..=range.end)
            .rev()
            .map(|(start, end)| *start..*end)
            .take_while(|span| span.end >= range.start)
            .collect();
        let mut fresh = Vec::new();
        let mut at = range.start;
        for span in touching.into_iter().rev() {
            self.0.remove(&span.start);
            if at < span.start {
                fresh.push(at..span.start);
            }
            at = at.max(span.end);
            start = start.min(span.start);
            end = end.max(span.end);
        }
        if at < range.end {
            fresh.push(at..range.end);
        }
        self.0.insert(start, end);
        fresh
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        for span in self.within(range.clone()) {
            // The span that this is a part of.
            let Some((start, end)) =
                self.0.range(..=span.start).next_back().map(|(start, end)| (*start, *end))
            else {
                continue;
            };
            self.0.remove(&start);
            self.0.extend(
                [start..span.start, span.end..end]
                    .iter()
                    .filter(|part| !part.is_empty())
                    .map(|part| (part.start, part.end)),
            );
        }
    }

    /// What is there of a range.
    pub(crate) fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let reaching =
            self.0.range(..range.end).map(|(start, end)| *start.max(&range.start)..*end.min(&range.end));
        reaching.filter(|span| !span.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: u64) -> usize {
        usize::try_from(at).expect("a small file")
    }

    #[test]
    fn a_range_is_fresh_once() {
        // Every byte of a small file by itself is the model.
        let mut random = 1_u64;
        for _ in 0..200 {
            let mut spans = Spans::default();
            let mut model = [false; 40];
            for _ in 0..12 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (a, b) = ((random >> 33) % 41, (random >> 47) % 41);
                let range = a.min(b)..a.max(b);
                let fresh: Vec<u64> = spans.insert(range.clone()).into_iter().flatten().collect();
                let expect: Vec<u64> =
                    range.clone().filter(|at| !std::mem::replace(&mut model[place(*at)], true)).collect();
                assert_eq!(fresh, expect);
                let (from, to) = ((random >> 20) % 41, (random >> 26) % 41);
                if (random >> 60) < 4 && from < to {
                    spans.remove(&(from..to));
                    model[place(from)..place(to)].fill(false);
                }
                let there: Vec<u64> = spans.within(5..30).into_iter().flatten().collect();
                let expect: Vec<u64> = (5..30).filter(|at| model[place(*at)]).collect();
                assert_eq!(there, expect);
            }
        }
    }
}
