//! Where tensors live and operations run. Each backend is one module; the rest of the crate names no device.

pub mod cpu;

pub use cpu::Cpu;

/// A handle to a device; clones share its memory and threads.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host: every operation's reference backend, and a real one.
    Cpu(Cpu),
}

impl Device {
    /// The CPU with `threads` worker threads (all cores when `None`).
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the threads cannot be started.
    pub fn cpu(threads: Option<usize>) -> crate::Result<Self> {
        Ok(Device::Cpu(Cpu::new(threads)?))
    }

    /// True if both handles name the same device.
    pub fn same(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu(a), Device::Cpu(b)) => a.same(b),
        }
    }

    /// Runs `work` with the device's threads at hand. Operations work without it too; inside it they
    /// start sooner, so a training step or a sampling loop belongs in one call.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Device::Cpu(cpu) => cpu.install(work),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Device::Cpu(cpu) => write!(f, "cpu ({} threads)", cpu.threads()),
        }
    }
}
