//! Which of two swarms goes first where they share a card. Does not own what follows from it (`cards`, and the peers).

/// How urgent an artifact is to those who want it. A later one goes before an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// It takes what others leave.
    Low,
    /// What is not said counts as this.
    #[default]
    Normal,
    /// It goes before all others.
    High,
}

impl Priority {
    /// All of them, the least urgent first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// How people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// How many want something, and how urgently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes([usize; Priority::ALL.len()]);

impl Wishes {
    /// One more wants it so.
    pub fn add(&mut self, priority: Priority) {
        self.0[priority as usize] += 1;
    }

    /// One less.
    pub fn remove(&mut self, priority: Priority) {
        let count = &mut self.0[priority as usize];
        *count = count.saturating_sub(1);
    }

    /// The most urgent wish, if there is one.
    pub fn most_urgent(&self) -> Option<Priority> {
        Priority::ALL.into_iter().rev().find(|priority| self.0[*priority as usize] > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_wish_counts_for_as_long_as_somebody_has_it() {
        let mut wishes = Wishes::default();
        assert_eq!(wishes.most_urgent(), None);
        for priority in [Priority::Low, Priority::High, Priority::High] {
            wishes.add(priority);
        }
        assert_eq!(wishes.most_urgent(), Some(Priority::High));
        wishes.remove(Priority::High);
        assert_eq!(wishes.most_urgent(), Some(Priority::High));
        wishes.remove(Priority::High);
        assert_eq!(wishes.most_urgent(), Some(Priority::Low));
        // Nobody has it any more.
        wishes.remove(Priority::Low);
        wishes.remove(Priority::Low);
        assert_eq!(wishes, Wishes::default());
    }
}
