//! `modelctl build` into a layout on disk.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::support::{Scratch, assert_said, contents};

#[test]
fn build_says_what_it_published() {
    let scratch = Scratch::with_model();
    assert_said!(scratch.run(&["build", "model", "-t", "oci:out:v1"]));
}

#[test]
fn build_json() {
    let scratch = Scratch::with_model();
    assert_said!(scratch.run(&["build", "model", "-t", "oci:out:v1", "--json"]));
}

#[test]
fn the_same_files_give_the_same_bytes_in_any_directory_on_any_day() {
    let scratch = Scratch::with_model();
    scratch.write_model("elsewhere/copy");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::options().write(true).open(scratch.path("elsewhere/copy/config.json")).unwrap();
    file.set_modified(old).unwrap();
    scratch.stdout(&["build", "model", "-t", "oci:one:v1"]);
    scratch.stdout(&["build", "elsewhere/copy", "-t", "oci:two:v1"]);
    assert_eq!(contents(&scratch.path("one")), contents(&scratch.path("two")));
    scratch.stdout(&["build", "model", "-t", "oci:one:v1"]);
    assert_eq!(contents(&scratch.path("one")), contents(&scratch.path("two")), "again into the same layout");
}

#[test]
fn permissions_and_times_come_through_where_they_are_kept() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let scratch = Scratch::with_model();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 123_456_789);
    let config = scratch.path("model/config.json");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).unwrap();
    fs::File::options().write(true).open(&config).unwrap().set_modified(time).unwrap();
    scratch.stdout(&["build", "model", "-t", "oci:out:v1", "--preserve-metadata"]);
    scratch.stdout(&["pull", "oci:out:v1", "-o", "there"]);
    let found = fs::metadata(scratch.path("there/config.json")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.modified().unwrap()), (0o640, time));
    assert_eq!(fs::metadata(scratch.path("there/tools/convert.py")).unwrap().mode() & 0o7777, 0o755);
    scratch.assert_pulled("model", "there");
}

#[test]
fn the_creation_time_is_source_date_epoch() {
    let scratch = Scratch::with_model();
    let build = |value: &str| {
        let mut command = scratch.modelctl(&["build", "model", "-t", "oci:out:v1"]);
        assert_eq!(command.env("SOURCE_DATE_EPOCH", value).output().unwrap().status.code(), Some(0));
        scratch.json(&["inspect", "oci:out:v1"])["model"]["created_at"].clone()
    };
    assert_eq!(build("0"), "1970-01-01T00:00:00Z");
    assert_eq!(build("1700000000"), "2023-11-14T22:13:20Z");
    let output = scratch
        .modelctl(&["build", "model", "-t", "oci:out:v1"])
        .env("SOURCE_DATE_EPOCH", "yesterday")
        .output();
    assert_eq!(output.unwrap().status.code(), Some(2));
}

#[test]
fn what_cannot_be_built() {
    let scratch = Scratch::with_model();
    fs::create_dir(scratch.path("empty")).unwrap();
    scratch.write("linked/config.json", "{}");
    symlink("../model/config.json", scratch.path("linked/model.safetensors")).unwrap();
    scratch.write("colliding/README.md", "");
    scratch.write("colliding/readme.md", "");
    scratch.write("other/notes.txt", "mine");
    let lines: &[&[&str]] = &[
        &["build", "absent", "-t", "oci:out:v1"],
        &["build", "empty", "-t", "oci:out:v1"],
        &["build", "linked", "-t", "oci:out:v1"],
        &["build", "colliding", "-t", "oci:out:v1"],
        &["build", "model", "-t", "oci:model/out:v1"],
        &["build", "model", "-t", "oci:other:v1"],
        &["build", "model", "-t", "./out"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    for untouched in ["out", "model/out", "other/oci-layout"] {
        assert!(!scratch.path(untouched).exists(), "{untouched} was made");
    }
}

#[test]
fn weights_that_are_not_there_yet_are_pointed_out() {
    let scratch = Scratch::new();
    scratch.write(
        "model/model.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    );
    scratch.write("model/other.safetensors", [0xff; 64]);
    assert_said!(scratch.run(&["build", "model", "-t", "oci:out:v1"]));
}

#[test]
fn skopeo_reads_the_layout() {
    let scratch = Scratch::with_model();
    let digest = scratch.json(&["build", "model", "-t", "oci:out:v1"])["digest"].as_str().unwrap().to_owned();
    let output = Command::new("skopeo")
        .args(["inspect", "--raw", &format!("oci:{}:v1", scratch.path("out").display())])
        .output()
        .expect("skopeo is not installed: run scripts/setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let hex = digest.strip_prefix("sha256:").unwrap();
    assert_eq!(output.stdout, fs::read(scratch.path("out/blobs/sha256").join(hex)).unwrap());
}

#[test]
fn a_link_to_a_file_of_the_directory_is_that_file() {
    let scratch = Scratch::new();
    scratch.write("model/blobs/abc", b"weights");
    scratch.write("model/config.json", b"{}");
    symlink("blobs/abc", scratch.path("model/model.bin")).unwrap();
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    scratch.stdout(&["pull", "oci:out:v1", "-o", "pulled"]);
    assert_eq!(fs::read(scratch.path("pulled/model.bin")).unwrap(), b"weights");
    assert!(!scratch.path("pulled/model.bin").is_symlink());
    for (link, target) in [("up", "../elsewhere"), ("loop", "loop"), ("dir", "blobs"), ("gone", "nothing")] {
        scratch.write("elsewhere", b"secret");
        let path = scratch.path("model").join(link);
        symlink(target, &path).unwrap();
        let failure = scratch.json(&["build", "model", "-t", "oci:other:v1"]);
        assert!(failure["error"].as_str().unwrap().contains("symbolic link"), "{failure}");
        fs::remove_file(path).unwrap();
    }
}

const MODELFILE: &str = "\
# Generated at 2026-01-02T03:04:05Z
NAME tiny
FAMILY stated
PARAMSIZE 1M
CONFIG *.json
MODEL model.safetensors
CODE tools
DATASET README.md
";

#[test]
fn a_modelfile_chooses_files_and_says_what_they_are() {
    let scratch = Scratch::with_model();
    scratch.write("Modelfile", MODELFILE);
    let lines: &[&[&str]] = &[
        &["build", "model", "-f", "Modelfile", "-t", "oci:out:v1", "--language", "English"],
        &[
            "build",
            "model",
            "-f",
            "Modelfile",
            "-t",
            "oci:out:v1",
            "--license",
            "MIT",
            "--model-version",
            "7",
        ],
        &["inspect", "oci:out:v1"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    let digest = scratch.json(&["inspect", "oci:out:v1"])["digest"].as_str().unwrap().to_owned();
    // At another time, by another name: the artifact is the same.
    scratch.write("Other", MODELFILE.replace("2026", "2027"));
    let args =
        ["build", "model", "-f", "Other", "-t", "oci:two:v1", "--license", "MIT", "--model-version", "7"];
    assert_eq!(scratch.json(&args)["digest"], digest.as_str());
    let raw = fs::read(scratch.path("out/blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
    let kept = manifest["annotations"]["org.cncf.modctl.modelfile"].as_str().unwrap();
    assert!(kept.starts_with("NAME tiny\n"), "{kept}");
}

#[test]
fn a_modelfile_that_cannot_be_used() {
    let scratch = Scratch::with_model();
    for (name, text) in [
        ("typo", "NAME tiny\nMODLE model.safetensors\n"),
        ("twice", "NAME a\nNAME b\n"),
        ("missing", "CONFIG config.json\nMODEL weights.bin\n"),
        ("outside", "MODEL ../model/model.safetensors\n"),
        ("nothing", "MODEL *.gguf\n"),
    ] {
        scratch.write(name, text);
    }
    let said = ["typo", "twice", "missing", "outside", "nothing", "absent"].map(|name| {
        let args = ["build", "model", "-f", name, "-t", "oci:out:v1"];
        format!("$ modelctl {}\n{}", args.join(" "), scratch.run(&args))
    });
    assert_said!(said.join("\n"));
    assert!(!scratch.path("out").exists());
}

#[test]
fn the_modelfile_of_a_directory_builds_the_same_layers() {
    let scratch = Scratch::with_model();
    assert_said!(scratch.run(&["modelfile", "model"]));
    scratch.stdout(&["modelfile", "model", "-o", "Modelfile"]);
    let failure = scratch.json(&["modelfile", "model", "-o", "Modelfile"]);
    assert_eq!(failure["exit_code"], 1, "{failure}");
    scratch.stdout(&["modelfile", "model", "-o", "Modelfile", "--overwrite"]);
    scratch.stdout(&["build", "model", "-t", "oci:one:v1", "--name", "model"]);
    scratch.stdout(&["build", "model", "-f", "Modelfile", "-t", "oci:two:v1"]);
    let [one, two] = ["oci:one:v1", "oci:two:v1"].map(|reference| scratch.json(&["inspect", reference]));
    assert_eq!(one["files"], two["files"]);
    assert_eq!(one["model"], two["model"], "the same facts");
}

#[test]
fn the_names_of_drafts_are_written_on_request() {
    let scratch = Scratch::with_model();
    let built = scratch.json(&["build", "model", "-t", "oci:out:v1", "--legacy-cnai"]);
    let hex = built["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let manifest = fs::read_to_string(scratch.path("out/blobs/sha256").join(hex)).unwrap();
    assert!(manifest.contains("vnd.cnai.model.manifest") && !manifest.contains("cncf"), "{manifest}");
    scratch.stdout(&["pull", "oci:out:v1", "-o", "pulled"]);
    scratch.assert_pulled("model", "pulled");
}

#[test]
fn a_layout_may_share_its_files_with_the_model() {
    use std::os::unix::fs::MetadataExt as _;
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:copied:v1"]);
    scratch.stdout(&["build", "model", "-t", "oci:linked:v1", "--link", "hard"]);
    assert_eq!(contents(&scratch.path("copied")), contents(&scratch.path("linked")));
    let weights = fs::metadata(scratch.path("model/model.safetensors")).unwrap();
    assert_eq!(weights.nlink(), 2);
    scratch.stdout(&["build", "model", "-t", "oci:linked:v1", "--link", "hard"]);
}
