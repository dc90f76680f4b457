//! Groups of users, by name or number.
//!
//! Owns: finding a group where the system looks for it. Does not own: what it may do.

use std::{fs, process::Command};

use crate::report::Refusal;

const GROUPS_FILE: &str = "/etc/group";

/// The number of a group.
pub(crate) fn group_number(group: &str) -> anyhow::Result<u32> {
    let found = group.parse().ok().or_else(|| in_list(&fs::read_to_string(GROUPS_FILE).ok()?, group));
    found.or_else(|| asked(group)).ok_or_else(|| {
        let hint = "make it with `groupadd`, or name a group that there is, or its number";
        Refusal::usage(format!("there is no group `{group}`")).hint(hint).into()
    })
}

/// A group that is not in the file, but in a directory service that the C library asks.
fn asked(group: &str) -> Option<u32> {
    let output = Command::new("getent").args(["group", "--", group]).output().ok()?;
    in_list(&String::from_utf8(output.stdout).ok()?, group)
}

/// Looks in lines as `NAME:PASSWORD:NUMBER:MEMBERS` (group(5)).
fn in_list(list: &str, group: &str) -> Option<u32> {
    let number = |line: &str| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    list.lines().find_map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name() {
        let list = "root:x:0:\nadm:x:4:syslog,me\nbroken\n+:::\n";
        assert_eq!(in_list(list, "adm"), Some(4));
        assert_eq!(in_list(list, "root"), Some(0));
        for absent in ["ad", "syslog", "x", "broken", "+", ""] {
            assert_eq!(in_list(list, absent), None, "{absent}");
        }
        assert_eq!(group_number("1234").unwrap(), 1234);
        assert!(group_number("no such group").is_err());
    }
}
