//! Archives: what real tools packed is unpacked, and what is hostile leaves nothing behind.

use std::{
    fs::{self, File},
    io::{self, Read, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    sync::Arc,
};

use ::store::{
    ArchiveError, Budget, Contents, LinkMode, Occupied, OpenedOutput, OutputDir, Packed, Published,
    StoreError, Taker, read_archive, verify_record,
};
use modelpack::{
    digest::Sha256Digest,
    layout::BlobIndex,
    manifest::{Kind, Packing},
    selection::Selection,
};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use crate::support::{Artifact, pattern, snapshot};

fn run(program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new(program).args(args).current_dir(dir).output().expect(program);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Publishes, proved, into `dir`.
fn publish(artifact: &Artifact, dir: &Path) -> Result<Published, StoreError> {
    let output = artifact.open(dir);
    let landing = output.landing();
    landing.preallocate().unwrap();
    artifact.commit_all(&landing);
    output.publish(artifact.proofs(&landing))
}

/// One archive and nothing else.
fn only(archive: Vec<u8>, packing: Packing) -> Artifact {
    Artifact::new(vec![archive], &[]).with_archives(&[(0, packing)])
}

#[track_caller]
fn refused(archive: Vec<u8>, expected: &str) {
    let top = tempfile::tempdir().unwrap();
    let error = publish(&only(archive, Packing::Tar), &top.path().join("model")).unwrap_err();
    let StoreError::Archive { archive, source } = &error else { panic!("{error:?}") };
    assert_eq!((archive.as_str(), source.to_string().as_str()), ("layer 0 (tar)", expected));
    assert_eq!(error.class(), ::store::ErrorClass::Fatal, "the digest is right");
    assert!(error.hint().is_some());
    let left: Vec<_> = fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".model.modelctl"], "nothing is visible, and nothing is outside of staging");
    assert!(!top.path().join(".model.modelctl/unpacked").exists());
}

/// Files with bytes, modes and times that a model may have, below `dir`.
fn model(dir: &Path) {
    fs::create_dir_all(dir.join("a/very/deep/directory")).unwrap();
    let long = format!("a/{}/{}.json", "d".repeat(150), "f".repeat(200));
    fs::create_dir_all(dir.join(&long).parent().unwrap()).unwrap();
    fs::write(dir.join(&long), b"{}").unwrap();
    fs::write(dir.join("a/very/deep/directory/weights.safetensors"), pattern(7, 3 << 20)).unwrap();
    fs::write(dir.join("a/empty"), b"").unwrap();
    fs::write(dir.join("a/Größe.txt"), pattern(1, 511)).unwrap();
    fs::write(dir.join("run.sh"), pattern(2, 512)).unwrap();
    fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o775)).unwrap();
    fs::set_permissions(dir.join("a/empty"), fs::Permissions::from_mode(0o640)).unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    for file in ["run.sh", "a/empty"] {
        File::options().append(true).open(dir.join(file)).unwrap().set_modified(when).unwrap();
    }
}

/// The files below `dir`, without our own.
fn files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let found = snapshot(dir).into_iter().filter_map(|(path, bytes)| {
        let path = path.strip_prefix(dir).unwrap().to_path_buf();
        Some((path, bytes?)).filter(|(path, _)| !path.starts_with(".modelctl"))
    });
    found.collect()
}

#[test]
fn what_real_tools_packed_is_unpacked() {
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    model(&source);
    let formats = ["--format=gnu", "--format=pax", "--format=ustar"];
    for (number, format) in formats.iter().enumerate() {
        let tar = |args: &[&str]| {
            let mut all = vec![*format, "--owner=12345", "-cf", "-"];
            all.extend(args);
            run("tar", &all, &source)
        };
        // Old tars have no room for names that long.
        let long = if *format == "--format=ustar" { "--exclude=*/dddd*" } else { "--exclude=nothing" };
        if *format == "--format=ustar" {
            fs::remove_dir_all(source.join(format!("a/{}", "d".repeat(150)))).unwrap();
        }
        for (packing, args) in [
            (Packing::Tar, vec![long, "."]),
            (Packing::TarGzip, vec![long, "--gzip", "a", "run.sh"]),
            (Packing::TarZstd, vec![long, "--zstd", "./a", "./run.sh"]),
        ] {
            let dir = top.path().join(format!("{number}-{packing}"));
            let artifact = only(tar(&args), packing);
            let published = publish(&artifact, &dir).unwrap();
            assert_eq!(files(&dir), files(&source), "{format} {packing}");
            let meta = |path: &str| fs::metadata(dir.join(path)).unwrap();
            assert_eq!(meta("run.sh").mode() & 0o7777, 0o755, "others may not write");
            assert_eq!(meta("a/empty").mode() & 0o7777, 0o640);
            assert_eq!(meta("run.sh").mtime(), 1_700_000_000);
            assert_ne!(meta("run.sh").uid(), 12345);
            for file in &published.record.files {
                let bytes = fs::read(dir.join(&file.path)).unwrap();
                assert_eq!((file.sha256, file.size), (Sha256Digest::of(&bytes), bytes.len() as u64));
            }
            verify_record(&dir, &published.record).unwrap();
            match OutputDir::open(&dir, artifact.contents.clone()).unwrap() {
                OpenedOutput::Complete(record) => assert_eq!(record, published.record),
                OpenedOutput::Fresh(_) => panic!("it is complete"),
            }
            assert!(!top.path().join(format!(".{number}-{packing}.modelctl")).exists(), "staging is gone");
        }
    }
}

#[test]
fn streams_of_several_parts_are_read_to_their_end() {
    let top = tempfile::tempdir().unwrap();
    model(top.path());
    let tar = run("tar", &["-cf", "-", "run.sh", "a/empty"], top.path());
    let (first, second) = tar.split_at(700);
    for (program, packing) in [("gzip", Packing::TarGzip), ("zstd", Packing::TarZstd)] {
        let mut stream = Vec::new();
        for part in [first, second] {
            fs::write(top.path().join("part"), part).unwrap();
            stream.extend(run(program, &["-c", "part"], top.path()));
        }
        let dir = top.path().join(program);
        assert_eq!(publish(&only(stream.clone(), packing), &dir).unwrap().record.files.len(), 2);
        stream.truncate(stream.len() - 5);
        let error = publish(&only(stream, packing), &top.path().join("cut")).unwrap_err();
        let StoreError::Archive { source, .. } = error else { panic!("{error:?}") };
        assert!(matches!(*source, ArchiveError::Damaged(_)), "{program}: {source:?}");
        fs::remove_dir_all(top.path().join(".cut.modelctl")).unwrap();
    }
}

#[test]
fn links_within_an_archive_are_second_names_of_one_file() {
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    fs::create_dir_all(source.join("blobs")).unwrap();
    fs::create_dir_all(source.join("snapshot")).unwrap();
    fs::write(source.join("blobs/0af1"), b"weights").unwrap();
    symlink("../blobs/0af1", source.join("snapshot/model.safetensors")).unwrap();
    symlink("model.safetensors", source.join("snapshot/again")).unwrap();
    fs::hard_link(source.join("blobs/0af1"), source.join("zzz")).unwrap();
    let archive = run("tar", &["-cf", "-", "snapshot", "blobs", "zzz"], &source);
    let dir = top.path().join("model");
    publish(&only(archive, Packing::Tar), &dir).unwrap();
    let inode = fs::symlink_metadata(dir.join("blobs/0af1")).unwrap().ino();
    for path in ["snapshot/model.safetensors", "snapshot/again", "zzz"] {
        let meta = fs::symlink_metadata(dir.join(path)).unwrap();
        assert!(meta.is_file() && meta.ino() == inode, "{path}");
    }
}

/// A header whose name is these bytes, whatever they are.
fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    header
}

/// An archive of entries with some content.
fn tar_of(entries: &[(&[u8], EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        builder.append(&header(name, *kind, content.len() as u64), *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn link_to(kind: EntryType, target: &str) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut header = header(b"dir/link", kind, 0);
    header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    builder.append(&header, io::empty()).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn paths_that_escape_or_deceive() {
    let file = EntryType::Regular;
    for name in ["/etc/passwd", "../x", "a/../../x", "a//b", ".modelctl/complete.json", "a\\b", "a\x1b[2J"] {
        refused(
            tar_of(&[(b"good", file, b"1"), (name.as_bytes(), file, b"2")]),
            "it has a path that no file may have",
        );
    }
    refused(tar_of(&[(b"a\xff", file, b"1")]), "`a\u{fffd}` has a name that is not UTF-8");
    // In an extended header there is room for a zero byte.
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", &b"a\0b"[..])]).unwrap();
    builder.append(&header(b"a", file, 1), &b"1"[..]).unwrap();
    refused(builder.into_inner().unwrap(), "it has a path that no file may have");
    let deep = "d/".repeat(3000) + "f";
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", deep.as_bytes())]).unwrap();
    builder.append(&header(b"a", file, 1), &b"1"[..]).unwrap();
    refused(builder.into_inner().unwrap(), "it has a path that no file may have");
}

#[test]
fn entries_that_are_no_files() {
    for (kind, what) in [
        (EntryType::Char, "is a device"),
        (EntryType::Block, "is a device"),
        (EntryType::Fifo, "is a named pipe"),
        (EntryType::GNUSparse, "is a sparse file, which is not unpacked"),
        (EntryType::new(b'M'), "is an entry of the type 77, which is not unpacked"),
    ] {
        refused(tar_of(&[(b"odd", kind, b"")]), &format!("`odd` {what}"));
    }
    for kind in [EntryType::Symlink, EntryType::Link] {
        for target in ["/etc/passwd", "../../etc/passwd", "../..", ""] {
            let expected = match target {
                "" => "`dir/link` is a link whose target is not UTF-8".to_owned(),
                target => format!("`dir/link` is a link to `{target}`, outside of the archive"),
            };
            refused(link_to(kind, target), &expected);
        }
    }
    let missing = "which is no file that is unpacked of the archive";
    refused(link_to(EntryType::Symlink, "gone"), &format!("`dir/link` is a link to `dir/gone`, {missing}"));
    refused(link_to(EntryType::Symlink, "link"), &format!("`dir/link` is a link to `dir/link`, {missing}"));
}

#[test]
fn sparse_files_of_real_tar() {
    let top = tempfile::tempdir().unwrap();
    File::create(top.path().join("holes")).unwrap().set_len(1 << 30).unwrap();
    let pack = |format: &str| run("tar", &[format, "--sparse", "-cf", "-", "holes"], top.path());
    refused(pack("--format=gnu"), "`holes` is a sparse file, which is not unpacked");
    refused(pack("--format=pax"), "it is not a tar archive: it has sparse files, which are not unpacked");
}

#[test]
fn what_is_no_archive() {
    refused(pattern(3, 5000), "it is not a tar archive: its first header has a wrong checksum");
    let good = tar_of(&[(b"a", EntryType::Regular, &[1; 2000]), (b"b", EntryType::Regular, b"2")]);
    refused(good[..900].to_vec(), "it is damaged");
    let mut damaged = good.clone();
    damaged[512 + 2048] ^= 1;
    refused(damaged, "it is not a tar archive: a header has a wrong checksum");
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("comment", &vec![b'c'; 2 << 20][..])]).unwrap();
    refused(builder.into_inner().unwrap(), "it is not a tar archive: an extended header is too long");
    let mut huge = header(b"a", EntryType::Regular, 0);
    huge.set_size(u64::MAX - 100);
    huge.set_cksum();
    let top = tempfile::tempdir().unwrap();
    let error =
        publish(&only(huge.as_bytes().to_vec(), Packing::Tar), &top.path().join("model")).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error:?}");
    // Of no bytes there are no files.
    publish(&only(Vec::new(), Packing::Tar), &top.path().join("empty")).unwrap();
}

#[test]
fn files_that_cannot_exist_together() {
    let (file, top) = (EntryType::Regular, tempfile::tempdir().unwrap());
    let check = |archives: Vec<Vec<u8>>, raw: &str| {
        let count = u32::try_from(archives.len()).unwrap();
        let mut blobs = archives;
        blobs.push(pattern(1, 10));
        let packed: Vec<_> = (0..count).map(|blob| (blob, Packing::Tar)).collect();
        let artifact = Artifact::new(blobs, &[(raw, count)]).with_archives(&packed);
        let dir = top.path().join("model");
        let error = publish(&artifact, &dir).unwrap_err();
        assert!(matches!(error, StoreError::Paths(_)), "{error:?}");
        assert!(!dir.exists());
        fs::remove_dir_all(top.path().join(".model.modelctl")).unwrap();
    };
    check(vec![tar_of(&[(b"a", file, b"1"), (b"a", file, b"2")])], "raw");
    check(vec![tar_of(&[(b"a", file, b"1"), (b"A", file, b"2")])], "raw");
    check(vec![tar_of(&[(b"a", file, b"1")]), tar_of(&[(b"a/b", file, b"2")])], "raw");
    check(vec![tar_of(&[(b"RAW", file, b"1")])], "raw");
}

/// Takes everything and keeps nothing.
struct Counting(u64);

impl Taker for Counting {
    fn file(&mut self, _: &Packed, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
        self.0 += io::copy(bytes, &mut io::sink()).map_err(ArchiveError::reading)?;
        Ok(())
    }

    fn link(&mut self, _: &str, _: &str) -> Result<(), ArchiveError> {
        Ok(())
    }
}

#[test]
fn a_bomb_is_noticed_long_before_it_is_unpacked() {
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(header(b"zeros", EntryType::Regular, 2 << 30).as_bytes()).unwrap();
    io::copy(&mut io::repeat(0).take((2 << 30) + 1024), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    let mut counting = Counting(0);
    let budget = Budget::new(bomb.len() as u64);
    let error = read_archive(&bomb[..], Packing::TarZstd, &budget, &mut counting).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLarge(_)), "{error:?}");
}

#[test]
fn a_selection_unpacks_what_it_names_and_is_no_complete_artifact() {
    let (file, top) = (EntryType::Regular, tempfile::tempdir().unwrap());
    let archive = tar_of(&[(b"a.json", file, b"1"), (b"b.bin", file, b"2"), (b"c/d.json", file, b"3")]);
    let artifact = only(archive, Packing::Tar);
    let part = |include: &str, kinds: &[Kind]| {
        let selection = Arc::new(Selection::new(&[include.to_owned()], &[], kinds).unwrap());
        let contents = Contents { selection: Some(selection), ..artifact.contents.clone() };
        Artifact { bytes: artifact.bytes.clone(), trees: artifact.trees.clone(), contents }
    };
    let dir = top.path().join("model");
    let some = part("**/*.json", &[]);
    let published = publish(&some, &dir).unwrap();
    let paths: Vec<_> = files(&dir).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, [Path::new("a.json"), Path::new("c/d.json")]);
    assert_eq!(published.record.selection.as_deref(), Some("--include **/*.json"));
    assert!(matches!(OutputDir::open(&dir, some.contents.clone()).unwrap(), OpenedOutput::Complete(_)));
    for other in [artifact.contents.clone(), part("*.bin", &[]).contents] {
        match OutputDir::open(&dir, other) {
            Err(StoreError::Occupied { reason, .. }) => assert_eq!(reason, Occupied::OtherSelection),
            other => panic!("{other:?}"),
        }
    }
    for (include, kinds, expected) in [
        ("*.pt", vec![], "`--include *.pt` matches no file of the artifact"),
        ("*.bin", vec![Kind::Doc], "`--kind doc` matches no file of the artifact"),
    ] {
        let error = publish(&part(include, &kinds), &top.path().join("none")).unwrap_err();
        let StoreError::Selection(error) = error else { panic!("{error:?}") };
        assert_eq!(error.to_string(), expected);
        fs::remove_dir_all(top.path().join(".none.modelctl")).unwrap();
    }
}

#[test]
fn a_pull_of_a_part_that_was_cut_off_is_not_continued_as_another() {
    let (file, top) = (EntryType::Regular, tempfile::tempdir().unwrap());
    let artifact = only(tar_of(&[(b"a", file, b"1"), (b"b", file, b"2")]), Packing::Tar);
    let selection = Arc::new(Selection::new(&["a".into()], &[], &[]).unwrap());
    let part = Contents { selection: Some(selection), ..artifact.contents.clone() };
    let present = top.path().join("present");
    fs::create_dir(&present).unwrap();
    for dir in [top.path().join("absent"), present] {
        let OpenedOutput::Fresh(begun) = OutputDir::open(&dir, part.clone()).unwrap() else {
            panic!("it is new")
        };
        drop(begun);
        match OutputDir::open(&dir, artifact.contents.clone()) {
            Err(StoreError::Occupied { reason, .. }) => assert_eq!(reason, Occupied::OtherSelection),
            other => panic!("{other:?}"),
        }
        assert!(matches!(OutputDir::open(&dir, part.clone()).unwrap(), OpenedOutput::Fresh(_)));
    }
}

#[test]
fn publishing_that_was_cut_off_is_taken_back_and_done_again() {
    let (file, top) = (EntryType::Regular, tempfile::tempdir().unwrap());
    let archive = tar_of(&[(b"a.txt", file, b"1"), (b"b.safetensors", file, b"2")]);
    let artifact =
        Artifact::new(vec![archive, pattern(1, 10)], &[("raw", 1)]).with_archives(&[(0, Packing::Tar)]);
    let output = artifact.open(top.path());
    let landing = output.landing();
    landing.preallocate().unwrap();
    artifact.commit_all(&landing);
    // Somebody takes the name of the last file: the others have theirs by then.
    fs::write(top.path().join("b.safetensors"), b"mine").unwrap();
    let error = output.publish(artifact.proofs(&landing)).unwrap_err();
    assert!(matches!(error, StoreError::Occupied { .. }), "{error:?}");
    drop(landing);
    assert!(top.path().join("a.txt").exists() && top.path().join("raw").exists());
    fs::remove_file(top.path().join("b.safetensors")).unwrap();
    let output = artifact.open(top.path());
    assert!(!top.path().join("a.txt").exists() && !top.path().join("raw").exists(), "taken back");
    let landing = output.landing();
    assert_eq!(artifact.resume(&landing), 2);
    output.publish(artifact.proofs(&landing)).unwrap();
    assert_eq!(files(top.path()).len(), 3);
    assert!(!top.path().join(".modelctl/staging").exists());
}

#[test]
fn an_archive_of_the_local_peer_is_read_where_it_lies() {
    let (file, top) = (EntryType::Regular, tempfile::tempdir().unwrap());
    let artifact = only(tar_of(&[(b"a", file, b"1")]), Packing::Tar);
    let stored = top.path().join("stored");
    fs::write(&stored, &artifact.bytes[0]).unwrap();
    let dir = top.path().join("model");
    let output = artifact.open(&dir);
    output.place_from(BlobIndex(0), &File::open(&stored).unwrap(), LinkMode::Copy).unwrap();
    let published = output.publish(Vec::new()).unwrap();
    assert_eq!((files(&dir).len(), published.copied), (1, 0));
    assert_eq!(fs::metadata(&stored).unwrap().nlink(), 1);
}

proptest! {
    #[test]
    fn any_damage_is_an_error_or_other_bytes(at in any::<prop::sample::Index>(), byte in any::<u8>(), packing in 0..3) {
        let tar = tar_of(&[(b"a", EntryType::Regular, &[1; 700]), (b"b", EntryType::Symlink, b"")]);
        let (packing, mut packed) = match packing {
            0 => (Packing::Tar, tar),
            1 => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).unwrap();
                (Packing::TarGzip, encoder.finish().unwrap())
            }
            _ => (Packing::TarZstd, zstd::encode_all(&tar[..], 1).unwrap()),
        };
        let at = at.index(packed.len());
        packed[at] = byte;
        let _ = read_archive(&packed[..], packing, &Budget::new(0), &mut Counting(0));
        packed.truncate(at);
        let _ = read_archive(&packed[..], packing, &Budget::new(0), &mut Counting(0));
    }
}
