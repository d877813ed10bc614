//! `info`: the build, the machine and what is found on it.

use serde_json::{Value as Json, json};

use crate::media::Ffmpeg;

/// Versions that a result depends on.
pub fn versions() -> Json {
    json!({
        "customttt": env!("CARGO_PKG_VERSION"),
        "rustc": env!("CUSTOMTTT_RUSTC"),
        "target": env!("CUSTOMTTT_TARGET"),
        "profile": env!("CUSTOMTTT_PROFILE"),
    })
}

/// Everything `info` says.
pub fn report() -> Json {
    let (total, available) = memory().unzip();
    let ffmpeg = Ffmpeg::OnPath.program().ok().flatten();
    json!({
        "versions": versions(),
        "features": env!("CUSTOMTTT_FEATURES").split_whitespace().collect::<Vec<_>>(),
        "cpu": {
            "cores": std::thread::available_parallelism().map_or(1, |n| n.get()),
            "instructions": instructions(),
        },
        "memory_bytes": { "total": total, "available": available },
        "devices": [{ "name": "cpu", "usable": true }],
        "cuda": "this build has no CUDA support",
        "libraries": { "ffmpeg": ffmpeg.map(|path| path.display().to_string()) },
    })
}

/// The report for people: a line for each fact.
pub fn lines(report: &Json) -> String {
    let text = |value: &Json| match value {
        Json::Null => "not found".to_string(),
        Json::String(text) => text.clone(),
        Json::Array(all) if all.is_empty() => "none".into(),
        Json::Array(all) => all.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    let gib = |value: &Json| {
        value.as_u64().map_or("unknown".into(), |b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64))
    };
    let (versions, cpu, memory) = (&report["versions"], &report["cpu"], &report["memory_bytes"]);
    [
        ("customttt", format!("{} ({} build)", text(&versions["customttt"]), text(&versions["profile"]))),
        ("compiler", format!("{}, for {}", text(&versions["rustc"]), text(&versions["target"]))),
        ("features", text(&report["features"])),
        ("device", format!("cpu, {} cores, {}", text(&cpu["cores"]), text(&cpu["instructions"]))),
        ("cuda", text(&report["cuda"])),
        ("memory", format!("{}, {} available", gib(&memory["total"]), gib(&memory["available"]))),
        ("ffmpeg", text(&report["libraries"]["ffmpeg"])),
    ]
    .map(|(name, value)| format!("{name:<10} {value}\n"))
    .concat()
}

/// Instruction sets the kernels make use of.
#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

/// (total, available) bytes, where the system says.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}
