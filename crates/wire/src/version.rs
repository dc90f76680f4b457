//! Which protocol this build speaks. Does not own what a feature bit turns on.

use crate::WireError;

/// The version that the first message of every stream carries. It changes only when old and new cannot work together.
pub const PROTOCOL_VERSION: u32 = 1;

/// The optional abilities of this build, one bit each. Unknown bits of the other side are ignored.
pub const FEATURES: u64 = FEATURE_SCHEDULERS | FEATURE_RATES;

/// It knows of several schedulers: a peer that has it may be redirected, and a scheduler that has it counts epochs on
/// from what peers say.
pub const FEATURE_SCHEDULERS: u64 = 1 << 0;

/// As a child it keeps to the rate of a grant.
pub const FEATURE_RATES: u64 = 1 << 1;

/// Refuses every version but ours: a version is only ever raised for a change that cannot be ignored.
///
/// # Errors
/// [`WireError::Version`], whose text is fit for the refusal that the other side is sent.
pub fn check_version(theirs: u32) -> Result<(), WireError> {
    if theirs == PROTOCOL_VERSION {
        Ok(())
    } else {
        Err(WireError::Version { theirs, ours: PROTOCOL_VERSION })
    }
}
