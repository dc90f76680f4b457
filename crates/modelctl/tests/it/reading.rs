//! Artifacts that other tools made, packed by real ones and exchanged with real ones.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use modelpack::digest::Sha256Digest;
use serde_json::{Value, json};
use store::LayoutWriter;

use crate::{
    running::Running,
    support::{Registry, Scratch, assert_said},
};

const PACK: &str = "application/vnd.cncf.model";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// One layer: media type, bytes, annotations.
pub(crate) type Layer = (String, Vec<u8>, Value);

/// Writes an artifact as other tools do, as `oci:foreign:TAG`; gives its digest.
pub(crate) fn write(scratch: &Scratch, tag: &str, config: &str, layers: Vec<Layer>) -> Sha256Digest {
    let writer = LayoutWriter::open(&scratch.path("foreign")).unwrap();
    let layers: Vec<_> = layers
        .into_iter()
        .map(|(media_type, bytes, annotations)| {
            let digest = writer.write_bytes(&bytes).unwrap().to_string();
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations})
        })
        .collect();
    let config =
        json!({"mediaType": config, "digest": writer.write_bytes(b"{}").unwrap().to_string(), "size": 2});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    writer.put_manifest(manifest.to_string().as_bytes(), Some(tag)).unwrap()
}

fn run(program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new(program).args(args).current_dir(dir).output().expect(program);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The model's files, but not what other tools keep there, as real tar packs them.
fn tar(scratch: &Scratch, args: &[&str]) -> Vec<u8> {
    let others = ["--exclude=.git", "--exclude=.cache", "--exclude=.modelctl", "-cf", "-"];
    run("tar", &[args, &others, &["."]].concat(), &scratch.path("model"))
}

/// Copies between layouts and registries.
fn skopeo(scratch: &Scratch, from: &str, to: &str) {
    let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let args = [&["copy", "--preserve-digests", "--all"], &plain[..], &[from, to]].concat();
    run("skopeo", &args, &scratch.path("."));
}

fn pull<'a>(reference: &'a str, dir: &'a str) -> Vec<&'a str> {
    vec!["pull", reference, "-o", dir, "--plain-http", "--peer", "none"]
}

/// That it is the model, that a second pull finds it so, and that every byte is verified.
#[track_caller]
fn assert_good(scratch: &Scratch, reference: &str, dir: &str) {
    let result = scratch.json(&pull(reference, dir));
    assert_eq!(result["verified"], true, "{result}");
    scratch.assert_pulled("model", dir);
    let meta = fs::metadata(scratch.path(dir).join("tools/convert.py")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
    let again = scratch.json(&pull(reference, dir));
    assert_eq!((&again["origin_bytes"], &again["local_bytes"]), (&json!(0), &result["bytes"]), "{again}");
    assert_eq!(again["files"], 6);
    let verified = scratch.json(&["verify", reference, dir, "--plain-http"]);
    assert_eq!((&verified["verified"], &verified["files"]), (&json!(true), &json!(6)), "{verified}");
}

#[test]
fn models_in_every_packing_are_read_from_layouts_and_from_a_registry_that_skopeo_filled() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    for (tag, dialect, packing, args) in [
        ("tar", "cncf", "tar", &["--format=pax"][..]),
        ("gzip", "cnai", "tar+gzip", &["--gzip", "--format=gnu"]),
        ("zstd", "cncf", "tar+zstd", &["--zstd"]),
    ] {
        let weight = format!("application/vnd.{dialect}.model.weight.v1.{packing}");
        let config = format!("application/vnd.{dialect}.model.config.v1+json");
        write(&scratch, tag, &config, vec![(weight, tar(&scratch, args), json!({}))]);
        assert_good(&scratch, &format!("oci:foreign:{tag}"), &format!("{tag}-of-layout"));
        let reference = registry.reference(&format!("models/packed:{tag}"));
        skopeo(&scratch, &format!("oci:foreign:{tag}"), &format!("docker://{reference}"));
        assert_good(&scratch, &reference, &format!("{tag}-of-registry"));
        skopeo(&scratch, &format!("docker://{reference}"), &format!("oci:back-{tag}:{tag}"));
        assert_good(&scratch, &format!("oci:back-{tag}:{tag}"), &format!("{tag}-back"));
        assert_eq!(
            scratch.json(&["inspect", &reference, "--plain-http"])["digest"],
            scratch.json(&["inspect", &format!("oci:foreign:{tag}")])["digest"]
        );
    }
}

#[test]
fn our_own_layouts_come_back_from_skopeo_as_they_were() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let reference = registry.reference("models/ours:v1");
    skopeo(&scratch, "oci:out:v1", &format!("docker://{reference}"));
    assert_good(&scratch, &reference, "of-registry");
    skopeo(&scratch, &format!("docker://{reference}"), "oci:copied:v1");
    assert_good(&scratch, "oci:copied:v1", "back");
}

/// A `ModelKit`, files of ORAS, and a model of Docker Model Runner, each of the same model.
fn of_other_tools(scratch: &Scratch) -> Vec<String> {
    let read = |path: &str| fs::read(scratch.path("model").join(path)).unwrap();
    // What is compressed is as long on any machine and day.
    let head = ["--mtime=@1700000000", "--owner=0", "--group=0", "--numeric-owner", "-cf", "-"];
    let part = |args: &[&str]| run("tar", &[&head[..], args].concat(), &scratch.path("model"));
    let kit = |part: &str, bytes| (format!("application/vnd.kitops.modelkit.{part}"), bytes, json!({}));
    write(
        scratch,
        "kit",
        "application/vnd.kitops.modelkit.config.v1+json",
        vec![
            kit("model.v1.tar+gzip", part(&["--gzip", "model.safetensors", "config.json"])),
            kit("code.v1.tar", part(&["tools"])),
            kit("docs.v1.tar+gzip", part(&["--gzip", "README.md", "empty.txt", ".gitattributes"])),
        ],
    );
    let titled = |media_type: &str, path: &str| {
        let annotations = json!({"org.opencontainers.image.title": path});
        (media_type.to_owned(), read(path), annotations)
    };
    let unpack = json!({"org.opencontainers.image.title": "tools", "io.deis.oras.content.unpack": "true"});
    write(
        scratch,
        "oras",
        EMPTY,
        vec![
            titled("application/vnd.oci.image.layer.v1.tar", "model.safetensors"),
            titled("application/json", "config.json"),
            titled("text/markdown", "README.md"),
            titled("text/plain", "empty.txt"),
            titled("text/plain", ".gitattributes"),
            ("application/vnd.oci.image.layer.v1.tar+gzip".into(), part(&["--gzip", "tools"]), unpack),
        ],
    );
    let docker = |part: &str, bytes| (format!("application/vnd.docker.ai.{part}"), bytes, json!({}));
    let placed = |path: &str| {
        let (media_type, bytes, _) = docker("model.file", read(path));
        (media_type, bytes, json!({"org.cncf.model.filepath": path}))
    };
    write(
        scratch,
        "docker",
        "application/vnd.docker.ai.model.config.v0.2+json",
        vec![
            docker("safetensors", read("model.safetensors")),
            docker("vllm.config.tar", part(&["config.json"])),
            docker("dir.tar", part(&["tools"])),
            placed("README.md"),
            placed("empty.txt"),
            placed(".gitattributes"),
        ],
    );
    ["kit", "oras", "docker"].map(str::to_owned).to_vec()
}

#[test]
fn artifacts_of_other_tools_are_the_same_model() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    for tag in of_other_tools(&scratch) {
        let layout = format!("oci:foreign:{tag}");
        assert_good(&scratch, &layout, &format!("{tag}-of-layout"));
        let reference = registry.reference(&format!("models/{tag}:v1"));
        scratch.stdout(&["push", &layout, &reference, "--plain-http"]);
        assert_good(&scratch, &reference, &format!("{tag}-of-registry"));
    }
    let lines =
        [&["inspect", "oci:foreign:kit"][..], &["inspect", "oci:foreign:kit", "--checksums", "sha256"]];
    let said = lines.map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args)));
    assert_said!(without_digests(&said.join("\n")));
}

/// Real tar writes the time of day, so that digests differ from run to run.
fn without_digests(text: &str) -> String {
    let hide = |word: &str| match word.strip_prefix("sha256:") {
        Some(_) => "sha256:[DIGEST]".to_owned(),
        None if word.len() == 12 && word.chars().all(|c| c.is_ascii_hexdigit()) => "[DIGEST]".to_owned(),
        None => word.to_owned(),
    };
    let sized = |line: &str| line.split(' ').map(hide).collect::<Vec<_>>().join(" ");
    text.lines().map(sized).collect::<Vec<_>>().join("\n")
}

#[test]
fn modes_and_times_are_restored_and_owners_are_not() {
    let scratch = Scratch::new();
    let metadata = r#"{"name":"a","mode":493,"uid":12345,"gid":12345,"size":1,"mtime":"2026-11-23T23:22:34.5Z","typeflag":0}"#;
    let annotations = json!({"org.cncf.model.filepath": "a", "org.cncf.model.file.metadata+json": metadata});
    let raw = (format!("{PACK}.code.v1.raw"), b"1".to_vec(), annotations);
    write(&scratch, "v1", &format!("{PACK}.config.v1+json"), vec![raw]);
    scratch.stdout(&pull("oci:foreign:v1", "there"));
    let meta = fs::metadata(scratch.path("there/a")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.mode() & 0o7777), (1_795_476_154, 500_000_000, 0o755));
    assert_ne!(meta.uid(), 12345);
    assert_eq!(scratch.json(&pull("oci:foreign:v1", "there"))["origin_bytes"], 0, "and it is still complete");
}

#[test]
fn a_layer_that_cannot_be_unpacked_is_named_and_one_that_is_not_the_manifests_is_damage() {
    let scratch = Scratch::with_model();
    let config = format!("{PACK}.config.v1+json");
    let mut cut = tar(&scratch, &["--gzip"]);
    cut.truncate(cut.len() / 2);
    let doc = (format!("{PACK}.doc.v1.raw"), b"d".to_vec(), json!({"org.cncf.model.filepath": "doc.txt"}));
    write(
        &scratch,
        "cut",
        &config,
        vec![doc.clone(), (format!("{PACK}.weight.v1.tar+gzip"), cut, json!({}))],
    );
    fs::create_dir(scratch.path("escape")).unwrap();
    fs::write(scratch.path("escape/target"), b"1").unwrap();
    std::os::unix::fs::symlink("../../outside", scratch.path("escape/link")).unwrap();
    let escaping = run("tar", &["-cf", "-", "escape"], &scratch.path("."));
    write(&scratch, "link", &config, vec![doc, (format!("{PACK}.weight.v1.tar"), escaping, json!({}))]);
    let lines = [pull("oci:foreign:cut", "there"), pull("oci:foreign:link", "there2")];
    let said = lines.map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(&args)));
    assert_said!(said.join("\n"));
    assert!(!scratch.path("there").exists() && !scratch.path("there2").exists());
    assert_eq!(scratch.json(&["verify", "oci:foreign:cut", "model"])["exit_code"], 1);

    let good = tar(&scratch, &[]);
    let digest = Sha256Digest::of(&good).hex();
    write(&scratch, "bad", &config, vec![(format!("{PACK}.weight.v1.tar"), good, json!({}))]);
    let path = scratch.path("foreign/blobs/sha256").join(digest);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    assert_eq!(scratch.json(&pull("oci:foreign:bad", "there3"))["exit_code"], 3);
    assert_eq!(scratch.json(&["verify", "oci:foreign:bad", "model"])["exit_code"], 3);
}

#[test]
fn a_changed_file_of_an_archive_is_found_by_verify() {
    let scratch = Scratch::with_model();
    let weight = (format!("{PACK}.weight.v1.tar+zstd"), tar(&scratch, &["--zstd"]), json!({}));
    write(&scratch, "v1", &format!("{PACK}.config.v1+json"), vec![weight]);
    scratch.stdout(&pull("oci:foreign:v1", "there"));
    fs::write(scratch.path("there/README.md"), b"# A other model\n").unwrap();
    fs::remove_file(scratch.path("there/empty.txt")).unwrap();
    let found = scratch.json(&["verify", "oci:foreign:v1", "there"]);
    assert_eq!(found["exit_code"], 3);
    let output = scratch.modelctl(&["verify", "oci:foreign:v1", "there"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("changed  README.md") && said.contains("missing  empty.txt"), "{said}");
    assert_eq!(scratch.json(&pull("oci:foreign:v1", "there"))["exit_code"], 1, "it is not complete any more");
}

#[test]
fn the_local_peer_keeps_the_archive_and_the_client_unpacks_it() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let archive = tar(&scratch, &["--zstd"]);
    let stored = format!("store/blobs/sha256/{}", Sha256Digest::of(&archive).hex());
    let weight = (format!("{PACK}.weight.v1.tar+zstd"), archive, json!({}));
    write(&scratch, "v1", &format!("{PACK}.config.v1+json"), vec![weight]);
    let reference = registry.reference("models/packed:v1");
    scratch.stdout(&["push", "oci:foreign:v1", &reference, "--plain-http"]);
    let mut peer =
        Running::start(scratch.modelctl(&["peer", "--store", "store", "--socket", "a.sock", "--json"]));
    peer.line();
    let pull = |dir: &str, more: &[&str]| {
        let args = ["pull", &reference, "-o", dir, "--plain-http", "--peer", "unix:a.sock"];
        scratch.json(&[&args, more].concat())
    };
    let first = pull("one", &[]);
    assert_eq!((&first["verified"], &first["files"]), (&json!(true), &json!(6)), "{first}");
    scratch.assert_pulled("model", "one");
    assert!(scratch.path(&stored).exists(), "the store has it as it came");
    for link in ["auto", "copy", "hard"] {
        let dir = format!("two-{link}");
        let next = pull(&dir, &["--link", link]);
        assert_eq!((&next["origin_bytes"], &next["local_bytes"]), (&json!(0), &next["bytes"]), "{next}");
        scratch.assert_pulled("model", &dir);
        assert_eq!(scratch.json(&["verify", &reference, &dir, "--plain-http"])["verified"], true);
    }
    let part = ["--include", "**/*.json", "--include", "tools/**"];
    let dry =
        scratch.stdout(&["pull", &reference, "-o", "four", "--plain-http", "--peer", "none", "--dry-run"]);
    assert!(dry.contains(" packed from ") || dry.contains(", packed from "), "{dry}");
    assert!(dry.contains("what it unpacks to is known only then"), "{dry}");
    let verify = [&["verify", &reference, "three", "--plain-http"], &part[..]].concat();
    let part = pull("three", &part);
    assert_eq!(scratch.json(&verify)["verified"], true);
    assert_eq!((&part["files"], &part["verified"]), (&json!(2), &json!(true)), "{part}");
    assert!(!scratch.path("three/model.safetensors").exists());
}

#[test]
fn members_of_a_fleet_exchange_the_archive_and_each_unpacks_it() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let weight = (format!("{PACK}.weight.v1.tar"), tar(&scratch, &[]), json!({}));
    write(&scratch, "v1", &format!("{PACK}.config.v1+json"), vec![weight]);
    let reference = registry.reference("models/packed:v1");
    scratch.stdout(&["push", "oci:foreign:v1", &reference, "--plain-http"]);
    let mut scheduler = Running::start(scratch.modelctl(&["scheduler", "--listen", "127.0.0.1:0", "--json"]));
    let url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
    let pull = |dir: &str, more: &[&str]| {
        let args =
            ["pull", &reference, "-o", dir, "--plain-http", "--peer", "none", "--scheduler", &url, "--json"];
        Running::start(scratch.modelctl(&[&args, more].concat()))
    };
    let pulls = ["one", "two", "three"].map(|dir| (dir, pull(dir, &["--linger", "2s"])));
    for (dir, pull) in pulls {
        let result = pull.result();
        assert_eq!(result["verified"], true, "{result}");
        scratch.assert_pulled("model", dir);
    }
    let refused = pull("four", &["--kind", "weight"]).failure();
    assert!(refused.contains("a selection cannot be pulled as a member of a fleet"), "{refused}");
}

/// Puts an index of manifests that the registry has; gives its digest.
fn put_index(registry: &Registry, repository: &str, tag: &str, digests: &[&str]) -> String {
    let entry = |digest: &&str| {
        let size = registry.get(&format!("{repository}/manifests/{digest}")).len();
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size})
    };
    let media_type = "application/vnd.oci.image.index.v1+json";
    let entries: Vec<_> = digests.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", registry.address());
    let header = format!("Content-Type: {media_type}");
    run(
        "curl",
        &["-sSf", "--noproxy", "*", "-X", "PUT", "-H", &header, "--data-binary", &index, &url],
        Path::new("."),
    );
    Sha256Digest::of(index.as_bytes()).to_string()
}

#[test]
fn an_index_leads_to_its_only_model() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let build = |tag: &str| {
        let reference = registry.reference(&format!("m:{tag}"));
        let built = scratch.json(&["build", "model", "-t", &reference, "--plain-http"]);
        built["digest"].as_str().unwrap().to_owned()
    };
    let one = build("v1");
    scratch.write("model/more.txt", "more");
    let two = build("v2");
    fs::remove_file(scratch.path("model/more.txt")).unwrap();
    let index = put_index(&registry, "m", "one", &[&one]);
    let mut peer =
        Running::start(scratch.modelctl(&["peer", "--store", "store", "--socket", "a.sock", "--json"]));
    peer.line();
    for (number, name) in
        [registry.reference("m:one"), registry.reference(&format!("m@{index}"))].iter().enumerate()
    {
        let dir = format!("there-{number}");
        assert_good(&scratch, name, &dir);
        let dir = format!("by-peer-{number}");
        let args = ["pull", name, "-o", &dir, "--plain-http", "--peer", "unix:a.sock"];
        let result = scratch.json(&args);
        assert_eq!((&result["verified"], &result["digest"]), (&json!(true), &json!(one)), "{result}");
    }
    put_index(&registry, "m", "both", &[&one, &two]);
    let reference = registry.reference("m:both");
    let said = scratch.run(&pull(&reference, "none"));
    let said = said.replace(&one, "[ONE]").replace(&two, "[TWO]");
    assert_said!(said);
}

#[test]
fn a_container_image_is_no_model() {
    let scratch = Scratch::with_model();
    let layer = ("application/vnd.oci.image.layer.v1.tar+gzip".into(), tar(&scratch, &["--gzip"]), json!({}));
    write(&scratch, "image", "application/vnd.oci.image.config.v1+json", vec![layer]);
    assert_said!(scratch.run(&pull("oci:foreign:image", "there")));
}
