//! Who made something on this machine that outlives a killed process. Does not own what was made.

use std::{fmt, path::Path};

/// What every name begins with.
const PREFIX: &str = "modelcast";

/// A process of one of the tools that use this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Maker {
    tool: &'static str,
    pid: u32,
}

impl Maker {
    /// This process, which runs that program.
    pub fn this(tool: &'static str) -> Self {
        Self { tool, pid: std::process::id() }
    }

    /// The process of that id.
    pub fn new(tool: &'static str, pid: u32) -> Self {
        Self { tool, pid }
    }

    /// Who of that tool made what has this name.
    pub(crate) fn of(tool: &'static str, name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?.strip_prefix('-')?.strip_prefix(tool)?.strip_prefix('-')?;
        let pid = rest.split('-').next()?.parse().ok()?;
        Some(Self { tool, pid })
    }

    pub(crate) fn tool(self) -> &'static str {
        self.tool
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// Whether there is a process of that id. If it is another by now, what the first left stays until that has ended.
    pub(crate) fn is_running(self) -> bool {
        Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

/// How names of what it made begin.
impl fmt::Display for Maker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}-{}-{}", self.tool, self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_who_made_it() {
        let maker = Maker::new("bench", 77);
        assert_eq!(Maker::of("bench", &format!("{maker}-peer1")), Some(maker));
        assert_eq!(Maker::of("bench", &maker.to_string()), Some(maker));
        for other in
            ["modelcast-fleet-drill-77-peer1", "modelcast-bench-x-peer1", "bench-77", "modelcast-bench77"]
        {
            assert_eq!(Maker::of("bench", other), None, "{other}");
        }
    }
}
