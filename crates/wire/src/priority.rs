//! How urgent an artifact is, as it travels. Does not own what that means (`planner`).

use planner::Priority;

use crate::{control, local};

impl From<Priority> for control::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }
}

impl From<Priority> for local::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }
}

/// What a message says. What only a later version knows counts as normal.
pub fn of_number(number: i32) -> Priority {
    match control::Priority::try_from(number) {
        Ok(control::Priority::Low) => Priority::Low,
        Ok(control::Priority::High) => Priority::High,
        Ok(control::Priority::Normal) | Err(_) => Priority::Normal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_number_priorities_alike_and_what_is_not_known_is_normal() {
        for priority in Priority::ALL {
            let numbers = [control::Priority::from(priority) as i32, local::Priority::from(priority) as i32];
            assert_eq!(numbers.map(of_number), [priority; 2]);
        }
        assert_eq!([0, 3, -1].map(of_number), [Priority::Normal; 3]);
    }
}
