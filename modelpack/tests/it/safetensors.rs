//! Headers of safetensors files: the crate's own writer, and headers that lie.

use modelpack::safetensors::{HEADER_BYTES_MAX, Summary, header_bytes, summary};
use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};

use crate::support::shown;

#[track_caller]
fn refused(header: &str, file_bytes: u64, expected: &str) {
    let error = summary(header.as_bytes(), file_bytes).unwrap_err();
    assert!(shown(&error).starts_with(expected), "{}", shown(&error));
}

fn file() -> Vec<u8> {
    let data = [0; 64];
    let tensors = [
        ("a", TensorView::new(Dtype::BF16, vec![4, 8], &data).unwrap()),
        ("b", TensorView::new(Dtype::F32, vec![2], &data[..8]).unwrap()),
        ("c", TensorView::new(Dtype::F32, vec![0, 7], &[]).unwrap()),
        ("d", TensorView::new(Dtype::F32, vec![], &data[..4]).unwrap()),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn what_the_writer_wrote() {
    let file = file();
    let header = usize::try_from(header_bytes(file[..8].try_into().unwrap()).unwrap()).unwrap();
    let found = summary(&file[8..8 + header], file.len() as u64).unwrap();
    let dtypes = [("BF16".to_owned(), 64), ("F32".to_owned(), 12)].into();
    assert_eq!(found, Summary { tensors: 4, dtypes, parameters: 35 });
}

#[test]
fn headers_that_lie() {
    assert!(header_bytes(HEADER_BYTES_MAX.to_le_bytes()).is_ok());
    let error = header_bytes(u64::MAX.to_le_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the safetensors header is said to have 18446744073709551615 bytes, over the limit of 100000000"
    );
    let one = |tensor: &str| format!("{{\"a\":{{{tensor}}}}}");
    let good = one(r#""dtype":"U8","shape":[4],"data_offsets":[0,4]"#);
    let len = 8 + good.len() as u64;
    assert!(summary(good.as_bytes(), len + 4).is_ok());
    for file_bytes in [0, len, len + 3, len + 5, u64::MAX] {
        let expected =
            format!("the safetensors header describes {} bytes, but the file has {file_bytes}", len + 4);
        refused(&good, file_bytes, &expected);
    }
    for tensor in [
        r#""dtype":"U8","shape":[4],"data_offsets":[1,5]"#,
        r#""dtype":"U8","shape":[4],"data_offsets":[4,0]"#,
        r#""dtype":"U8","shape":[5],"data_offsets":[0,4]"#,
        r#""dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]"#,
        r#""dtype":"U8","shape":[18446744073709551615,0],"data_offsets":[0,18446744073709551615]"#,
        r#""dtype":"X9","shape":[4],"data_offsets":[0,4]"#,
        r#""dtype":"F4","shape":[3],"data_offsets":[0,1]"#,
    ] {
        refused(&one(tensor), len + 4, "the safetensors header is malformed\n");
    }
    for header in ["", "[]", "null", "{", "{}x"] {
        refused(header, 8 + header.len() as u64, "the safetensors header is malformed\n");
    }
    let huge = one(r#""dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]"#);
    refused(&huge, 100, "the safetensors header describes 23058430092136940");
}

#[test]
fn a_file_without_tensors() {
    assert_eq!(summary(b"{}", 10).unwrap(), Summary::default());
    assert_eq!(summary(br#"{"__metadata__":{"format":"pt"}}"#, 40).unwrap(), Summary::default());
}

proptest! {
    #[test]
    fn changed_headers_do_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), file_bytes in any::<u64>()) {
        let file = file();
        let header = usize::try_from(header_bytes(file[..8].try_into().unwrap()).unwrap()).unwrap();
        let mut changed = file[8..8 + header].to_vec();
        let at = at.index(changed.len());
        changed[at] = byte;
        let _ = summary(&changed, file.len() as u64);
        prop_assert!(summary(&changed, file_bytes).is_err() || file_bytes == file.len() as u64);
    }
}
