//! Rules of the house: who may import whom, how long a file may be, and that every operation is registered.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from base to top: a module may import from those above it in this list, and from its own.
const LAYERS: &[&[&str]] = &[
    &["error", "dtype", "shape", "rng", "fs", "host"],
    &["device"],
    &["tensor", "weight"],
    &["tape"],
    &["ops"],
    &["nn", "model"],
    &["diffusion"],
    &["data", "media"],
    &["train"],
    &["cli"],
];

const LONGEST: usize = 600;

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("the folder should be readable") {
            let path = entry.expect("the entry should be readable").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} should hold sources");
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Place of a module in [`LAYERS`].
fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The modules that a line imports from the crate's root, as `crate::a::b` or `crate::{a::b, c}`.
fn imports(line: &str) -> Vec<&str> {
    let Some((_, rest)) = line.split_once("crate::") else { return Vec::new() };
    let first = |path: &'_ str| path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    match rest.strip_prefix('{') {
        Some(list) => list.split(',').map(|p| &p.trim()[..first(p.trim())]).collect(),
        None => vec![&rest[..first(rest)]],
    }
}

#[test]
fn imports_point_downwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut seen, mut upward) = (0, Vec::new());
    for path in sources("src") {
        let inside = path.strip_prefix(&root).expect("sources lie in src");
        let module = inside.iter().next().expect("a path has a first part").to_string_lossy().replace(".rs", "");
        if module == "lib" || module == "main" {
            continue;
        }
        let own = layer(&module).unwrap_or_else(|| panic!("{module} should have a place among the layers"));
        for line in text(&path).lines().filter(|l| !l.trim_start().starts_with("//")) {
            for import in imports(line) {
                let Some(other) = layer(import) else { continue };
                seen += 1;
                if other > own {
                    upward.push(format!("{} imports {import}, which stands above {module}: {line}", inside.display()));
                }
            }
        }
    }
    assert!(upward.is_empty(), "{}", upward.join("\n"));
    assert!(seen > 50, "the test should see the crate's imports, not {seen}");
}

#[test]
fn files_are_short() {
    for folder in ["src", "tests", "benches"] {
        for path in sources(folder) {
            let lines = text(&path).lines().count();
            assert!(lines <= LONGEST, "{} has {lines} lines, more than {LONGEST}", path.display());
        }
    }
}

#[test]
fn every_operation_is_registered() {
    let registered: Vec<_> = customttt::ops::ALL.iter().map(|spec| spec.name()).collect();
    let mut operations = 0;
    for path in sources("src/ops") {
        let name = |p: &Path| p.file_stem().expect("a source has a name").to_string_lossy().into_owned();
        let stem = match name(&path) {
            part if part == "mod" || part == "spec" => name(path.parent().expect("a source lies in a folder")),
            own => own,
        };
        if text(&path).contains("impl OpSpec for") {
            operations += 1;
            assert!(registered.contains(&&stem[..]), "{stem} should be listed in ops::ALL");
        }
    }
    assert_eq!(operations, registered.len(), "one file for each operation");
    let mut sorted = registered.clone();
    sorted.sort_unstable();
    assert_eq!(registered, sorted, "the list is kept in alphabetical order");
}

#[test]
fn the_model_names_no_device() {
    for folder in ["src/nn", "src/model", "src/diffusion", "src/train"] {
        for path in sources(folder) {
            let text = text(&path);
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            assert!(!code.contains("Device::Cpu"), "{} should leave devices to the operations", path.display());
        }
    }
}
