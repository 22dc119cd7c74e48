//! Lists the files of the shipped model, for `Classifier::embedded`.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const MODEL: &str = "models/lyhord-small-sv";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={MODEL}");
    if env::var_os("CARGO_FEATURE_EMBEDDED").is_none() {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let folder = Path::new(&root).join(MODEL);
    let mut files = String::new();
    if folder.join("manifest.json").exists() {
        let mut paths: Vec<_> = fs::read_dir(&folder)
            .expect("the model folder can be read")
            .map(|entry| entry.expect("the model folder can be read").path())
            .filter(|path| path.is_file())
            .collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default();
            // Relative to the package, so that a build folder can be moved with it.
            let name = name.to_string_lossy();
            let place = format!("/{MODEL}/{name}");
            writeln!(
                files,
                "    ({name:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {place:?}))),"
            )
            .expect("a string can be written to");
        }
    } else {
        println!(
            "cargo::warning={MODEL} has no manifest.json: Classifier::embedded will have no model"
        );
    }
    let code = format!("pub(super) static FILES: &[(&str, &[u8])] = &[\n{files}];\n");
    fs::write(Path::new(&out).join("embedded.rs"), code).expect("OUT_DIR can be written to");
}
