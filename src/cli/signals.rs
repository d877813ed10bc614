//! Ctrl+C and termination: the first asks the job to stop after its step, the second ends the program at once.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::{Error, Result};

/// Set by the first signal.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Installs the handlers. A second signal exits with 130 (SIGINT) or 143 (SIGTERM).
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub fn on_signals() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for (signal, status) in [(SIGINT, 130), (SIGTERM, 143)] {
            // Handlers run in the order of registration: exit if the flag is already set, then set it.
            flag::register_conditional_shutdown(signal, status, stop.clone())
                .and_then(|_| flag::register(signal, stop.clone()))
                .map_err(Error::io("signals", "install a handler"))?;
        }
        let watched = stop.clone();
        // A step may take minutes; the user should hear at once that the signal was heard.
        thread::spawn(move || {
            while !watched.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
            }
            let _ = writeln!(io::stderr(), "\nstopping after this step; once more to stop at once");
        });
        Ok(Stop(stop))
    }

    /// True once a signal has come.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
