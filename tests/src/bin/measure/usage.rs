//! What a process has used so far.

use std::{fs, time::Duration};

/// Of one process.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    rss_kib: u64,
    /// Of that, what is of no file.
    pub(crate) private_kib: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Usage {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th
        // field after it.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let ticks = ticks(11).unwrap_or_default() + ticks(12).unwrap_or_default();
        let per_second = rustix::param::clock_ticks_per_second();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|text| text.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
        };
        Usage {
            cpu: Duration::from_secs_f64(ticks as f64 / per_second as f64),
            rss_kib: kib("VmRSS:"),
            private_kib: kib("RssAnon:"),
        }
    }

    pub(crate) fn rss_mib(&self) -> f64 {
        self.rss_kib as f64 / 1024.0
    }
}
