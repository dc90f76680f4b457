//! How sizes and rates are written on a command line.
//!
//! Owns: parsing them. Does not own: what they limit.

use std::str::FromStr;

/// A rate in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(
    /// How many.
    pub u64,
);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        // An eighth of a megabit is 125,000 bytes, so that whole megabits are whole bytes.
        let unit = match unit {
            "" | "mbit" => 125_000,
            "gbit" => 125_000_000,
            "MB/s" => 1_000_000,
            "GB/s" => 1_000_000_000,
            _ => return Err("the units are mbit, gbit, MB/s and GB/s"),
        };
        let number: u64 = number.parse().map_err(|_| "it begins with a whole number")?;
        let rate = number.checked_mul(unit).ok_or("that is more than any network card does")?;
        if rate == 0 { Err("a rate is more than nothing") } else { Ok(Self(rate)) }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(
    /// How many.
    pub u64,
);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit {
            "" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err("the units are KB, MB, GB, TB, KiB, MiB, GiB and TiB"),
        };
        let number: u64 = number.parse().map_err(|_| "it begins with a whole number")?;
        let size = number.checked_mul(unit).ok_or("that is more than any disk holds")?;
        if size == 0 { Err("a size is more than nothing") } else { Ok(Self(size)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes() {
        for (text, expected) in [
            ("4096", Ok(4096)),
            ("500GB", Ok(500_000_000_000)),
            ("2TiB", Ok(2 << 40)),
            ("1KiB", Ok(1024)),
            ("3MB", Ok(3_000_000)),
            ("1.5GB", Err("the units are KB, MB, GB, TB, KiB, MiB, GiB and TiB")),
            ("5gb", Err("the units are KB, MB, GB, TB, KiB, MiB, GiB and TiB")),
            ("GB", Err("it begins with a whole number")),
            ("0TB", Err("a size is more than nothing")),
            ("99999999999TiB", Err("that is more than any disk holds")),
        ] {
            assert_eq!(text.parse(), expected.map(Size), "{text}");
        }
    }

    #[test]
    fn rates_are_bytes_per_second() {
        for (text, expected) in [
            ("200", Ok(25_000_000)),
            ("200mbit", Ok(25_000_000)),
            ("25gbit", Ok(3_125_000_000)),
            ("3GB/s", Ok(3_000_000_000)),
            ("400MB/s", Ok(400_000_000)),
            ("1.5gbit", Err("the units are mbit, gbit, MB/s and GB/s")),
            ("gbit", Err("it begins with a whole number")),
            ("0", Err("a rate is more than nothing")),
            ("99999999999999999999", Err("it begins with a whole number")),
            ("9999999999999GB/s", Err("that is more than any network card does")),
        ] {
            assert_eq!(text.parse::<Rate>().map(|rate| rate.0), expected, "{text}");
        }
    }
}
