//! Tells the program which compiler and target it was built with.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default();
    println!("cargo:rustc-env=CUSTOMTTT_RUSTC={version}");
    let features = env::vars().filter_map(|(k, _)| k.strip_prefix("CARGO_FEATURE_").map(str::to_lowercase));
    println!("cargo:rustc-env=CUSTOMTTT_FEATURES={}", features.collect::<Vec<_>>().join(" "));
    for (name, variable) in [("CUSTOMTTT_TARGET", "TARGET"), ("CUSTOMTTT_PROFILE", "PROFILE")] {
        println!("cargo:rustc-env={name}={}", env::var(variable).unwrap_or_default());
    }
}
