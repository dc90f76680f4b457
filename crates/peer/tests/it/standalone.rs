//! Pulls without scheduler, daemon or store.

use crate::support::{Model, pull};

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_of_a_layout_lands_proved() {
    let (model, top) = (Model::of(9), tempfile::tempdir().unwrap());
    let reference = model.write_layout(&top.path().join("layout"));
    let output = top.path().join("out");
    let report = pull(reference.clone(), &output).await.unwrap();
    model.assert_in(&output);
    assert_eq!((report.bytes, report.origin_bytes, report.digest), (model.bytes(), model.bytes(), model.digest()));
    let again = pull(reference, &output).await.unwrap();
    assert_eq!((again.origin_bytes, again.local_bytes), (0, model.bytes()));
}
