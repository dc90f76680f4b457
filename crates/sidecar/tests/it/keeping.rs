//! Directories without a server that would have to be told.

use std::fs;

use modelpack::selection::Selection;
use sidecar::Versions;

use crate::support::{Site, publish, until, version};

#[tokio::test]
async fn a_tag_that_moves_is_followed_and_one_former_version_stays() {
    let site = Site::new();
    site.meanwhile("", async {
        until("the first is in place", || site.is_ready()).await;
        for tag in 2..=4 {
            site.registry.change(|state| state.tag = Some(tag));
            until("the next is in place", || site.in_place() == Some(tag.to_string())).await;
            let digest = version(tag).to_string();
            until("it is shown", || site.shown()["digest"] == digest && site.shown()["state"] == "waiting")
                .await;
            assert_eq!(site.versions().len(), 2, "{:?}", site.versions());
        }
    })
    .await;
    assert_eq!(site.registry.pulled(), [1, 2, 3, 4]);
    assert!(!site.is_ready(), "who ends is not ready");
}

#[tokio::test]
async fn a_tag_that_moves_during_a_pull_costs_one_version_more_and_mixes_nothing() {
    let site = Site::new();
    site.registry.change(|state| state.moves_to = Some(2));
    site.meanwhile("", until("the second is in place", || site.in_place().as_deref() == Some("2"))).await;
    assert_eq!(site.registry.pulled(), [1, 2]);
}

#[tokio::test]
async fn without_a_registry_what_is_there_is_served_and_called_stale() {
    let site = Site::new();
    assert_eq!(site.once("").await.unwrap().stale, None);
    site.registry.change(|state| state.tag = None);
    site.meanwhile("", async {
        until("it says so", || site.shown()["stale"] == "nobody answers").await;
        assert!(site.is_ready());
        assert_eq!(site.in_place().as_deref(), Some("1"));
        site.registry.change(|state| state.tag = Some(1));
        until("it is fresh again", || site.shown()["stale"].is_null()).await;
        until("others are served from it", || site.registry.served() == [1]).await;
    })
    .await;
    site.registry.change(|state| state.tag = None);
    let ended = site.once("").await.unwrap();
    assert_eq!((ended.version, ended.stale.as_deref()), (Some(version(1)), Some("nobody answers")));
    assert_eq!(site.registry.pulled(), [1]);
}

#[tokio::test]
async fn an_init_container_without_a_registry_fails() {
    let site = Site::new();
    site.registry.change(|state| state.tag = None);
    assert_eq!(site.once("").await.unwrap_err(), "nobody answers");
    assert_eq!(site.in_place(), None);
}

#[tokio::test]
async fn a_pull_that_is_cut_off_shows_nothing_and_is_resumed() {
    let site = Site::new();
    site.registry.change(|state| state.fails = 1);
    assert_eq!(site.once("").await.unwrap_err(), "cut off");
    assert_eq!((site.in_place(), fs::symlink_metadata(site.path("chat")).is_ok()), (None, false));
    site.once("").await.unwrap();
    assert_eq!(site.in_place().as_deref(), Some("1"));
}

/// Killed after a version was brought, and before it was put in place.
#[tokio::test]
async fn a_version_that_was_brought_before_a_crash_is_put_in_place_after_it() {
    let site = Site::new();
    let versions = Versions::open(&site.path("chat"), &Selection::default()).unwrap();
    publish(&versions.path(&version(1)), 1);
    drop(versions);
    site.once("").await.unwrap();
    assert_eq!((site.in_place().as_deref(), site.registry.pulled().len()), (Some("1"), 0));
}

#[tokio::test]
async fn a_version_whose_files_were_changed_is_brought_again() {
    let site = Site::new();
    site.once("").await.unwrap();
    fs::write(site.path("chat/model.py"), "by hand").unwrap();
    site.once("").await.unwrap();
    assert_eq!((site.in_place().as_deref(), site.registry.pulled()), (Some("1"), vec![1, 1]));
}

#[tokio::test]
async fn what_does_not_fit_is_said_before_the_first_byte() {
    let site = Site::new();
    site.registry.change(|state| state.size = 1 << 60);
    let error = site.once("").await.unwrap_err();
    assert!(error.contains("has no room for it: 1099511627776 MiB are needed yet, "), "{error}");
    assert_eq!((site.registry.pulled().len(), site.versions().len()), (0, 0));
    // With something in place that goes on being served.
    site.registry.change(|state| state.size = 1);
    site.once("").await.unwrap();
    site.registry.change(|state| (state.size, state.tag) = (1 << 60, Some(2)));
    let ended = site.once("").await.unwrap();
    assert!(ended.stale.unwrap().contains("has no room for it"));
    assert_eq!(site.in_place().as_deref(), Some("1"));
}

#[tokio::test]
async fn a_second_process_is_told_that_the_directory_is_kept() {
    let site = Site::new();
    let _kept = Versions::open(&site.path("chat"), &Selection::default()).unwrap();
    let error = site.once("").await.unwrap_err();
    assert!(error.starts_with("another process keeps `"), "{error}");
}
