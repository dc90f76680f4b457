//! Vouchers prove by themselves who says what about which piece.

use identity::{ReaderKey, Voucher};

#[test]
fn a_voucher_is_about_one_piece_of_one_artifact_and_cannot_be_changed() {
    let (key, other) = (ReaderKey::generate().unwrap(), ReaderKey::generate().unwrap());
    let (artifact, value) = ([1; 32], [2; 32]);
    let voucher = key.vouch(&artifact, 7, 0, value);
    assert!(voucher.is_about(&artifact, 7));
    assert_eq!(voucher.reader(), key.id());
    assert_ne!(key.id(), other.id());
    assert!(!voucher.is_about(&artifact, 8), "another piece");
    assert!(!voucher.is_about(&[3; 32], 7), "another artifact");
    let changed = [
        Voucher { value: [9; 32], ..voucher.clone() },
        Voucher { round: 1, ..voucher.clone() },
        // Somebody else's name on it.
        Voucher { key: other.vouch(&artifact, 7, 0, value).key, ..voucher.clone() },
        Voucher { signature: [0; 64], ..voucher },
    ];
    assert!(changed.iter().all(|voucher| !voucher.is_about(&artifact, 7)));
}
