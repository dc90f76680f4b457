//! What happened lately, in words, for whoever looks at a failure. Does not own what is worth noting.

use std::collections::VecDeque;
use std::time::Duration;

/// Lines that are kept, at most.
const KEPT: usize = 200_000;

/// Lines that are kept, if any are.
#[derive(Debug, Default)]
pub(super) struct Trace {
    lines: Option<VecDeque<(Duration, [u32; 2], String)>>,
}

impl Trace {
    /// One that keeps lines; the default keeps none, and costs nothing.
    pub(super) fn kept() -> Self {
        Self { lines: Some(VecDeque::new()) }
    }

    /// Notes what a node did, or was told, concerning another.
    pub(super) fn note(&mut self, at: Duration, nodes: [u32; 2], words: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() == KEPT {
                lines.pop_front();
            }
            lines.push_back((at, nodes, words()));
        }
    }

    /// The last lines about some nodes: of one all that it does and hears, of several what they have with one another.
    pub(super) fn about(&self, nodes: &[u32], count: usize) -> Vec<String> {
        let lines = self.lines.iter().flatten();
        let is_about = |[node, other]: &[u32; 2]| match nodes {
            [] => true,
            [one] => node == one,
            _ => nodes.contains(node) && nodes.contains(other),
        };
        let about: Vec<String> = lines
            .filter(|(_, of, _)| is_about(of))
            .map(|(at, [node, _], words)| format!("{:12.6} s  node {node}: {words}", at.as_secs_f64()))
            .collect();
        about[about.len().saturating_sub(count)..].to_vec()
    }
}
