//! Configs are read leniently, and only configs.

use modelpack::config::{CONFIG_BYTES_MAX, ModelConfig};
use proptest::prelude::*;

use crate::support::shown;

#[test]
fn configs_of_modctl() {
    let config = ModelConfig::parse(include_bytes!("data/modctl-main-cncf.config.json")).unwrap();
    assert_eq!(config.name.as_deref(), Some("tiny-llama"));
    assert_eq!(config.family.as_deref(), Some("llama"));
    assert_eq!(config.architecture.as_deref(), Some("transformer"));
    assert_eq!(config.format.as_deref(), Some("safetensors"));
    assert_eq!(config.param_size.as_deref(), Some("8"));
    assert_eq!(config.precision.as_deref(), Some("bf16"));
    assert_eq!(config.created_at.as_deref(), Some("2026-11-23T23:25:39.641688743Z"));
    let config = ModelConfig::parse(include_bytes!("data/modctl-0.2.2-cnai.config.json")).unwrap();
    assert_eq!((config.precision.as_deref(), config.format), (Some("bfloat16"), None));
}

#[test]
fn unexpected_values_are_skipped() {
    let raw = br#"{"descriptor":{"name":1,"licenses":["MIT",2]},"config":[],"other":{}}"#;
    let config = ModelConfig::parse(raw).unwrap();
    assert_eq!((config.name, config.licenses), (None, vec!["MIT".to_owned()]));
}

#[test]
fn what_is_no_config_is_refused() {
    let error = |raw: &[u8]| shown(&ModelConfig::parse(raw).unwrap_err());
    assert_eq!(error(b"oops"), "the config is not JSON\nexpected value at line 1 column 1");
    assert_eq!(error(b"[]"), "the config is not a JSON object");
    let long = vec![b' '; usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1];
    assert_eq!(error(&long), "the config has 4194305 bytes, over the limit of 4194304");
}

proptest! {
    #[test]
    fn any_bytes_do_not_panic(raw in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = ModelConfig::parse(&raw);
    }
}
