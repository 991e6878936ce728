//! Watches how much memory perch uses against `limits.memory`, and says what is to be given up (`decide::shedding`).
//!
//! Counted are the process's resident memory and the socket buffers of its control group: what slow clients hold is partly
//! with the kernel. Not the group's `memory.current`: it has the page cache in it, and whoever else is in the group.
//! Without /proc there is nothing to watch.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::writer::Control;
use crate::config::MemoryLimit;
use crate::decide::shedding::Shedding;
use crate::state::pressure::Pressure;

/// As Envoy's examples have it; some 50 us of reading /proc. At a gigabit a second some 30 MiB can come in between.
const TICK: Duration = Duration::from_millis(250);

/// A step lasts so long at least: workers look once a second, and what they free takes a second to go.
const LEAST: Duration = Duration::from_secs(2);

/// Of a control group's limit: the rest is for what is not counted (the kernel's part of each connection, page tables).
const PART_OF_GROUP: (u64, u64) = (9, 10);

/// The allocator keeps what was freed until some thread frees more (mimalloc's purge, a second later), which on a quiet
/// machine may be never. A block of this size goes straight back and takes the rest along; it is never touched.
const SHAKE: usize = 16 << 20;

/// Ends with the task.
pub async fn run(control: Control, pressure: Pressure) {
    let group = Group::find(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup").unwrap_or_default());
    let mut is_told = false;
    let (mut shedding, mut since) = (Shedding::Nothing, Instant::now());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(memory) = look(control.snapshot().config.memory, group.as_ref()) else {
            if !is_told {
                is_told = true;
                warn!("The memory in use, or its limit, cannot be read; limits.memory stays as it was.");
            }
            // Without free descriptors, say: the crowd that took them takes memory too, and what was given up stays so.
            continue;
        };
        let next = memory.map_or(Shedding::Nothing, |(used, ceiling)| shedding.next(used, ceiling));
        let next = if since.elapsed() < LEAST { next.max(shedding) } else { next };
        pressure.set(next, memory);
        if next != shedding {
            tell(shedding, next, memory);
            (shedding, since) = (next, Instant::now());
        }
    }
}

/// What is used, and what may be; `None` without a ceiling.
fn look(limit: MemoryLimit, group: Option<&Group>) -> io::Result<Option<(u64, u64)>> {
    let ceiling = match limit {
        MemoryLimit::Off => None,
        MemoryLimit::Bytes(bytes) => Some(bytes),
        MemoryLimit::Cgroup => {
            group.map(Group::limit).transpose()?.flatten().map(|b| b / PART_OF_GROUP.1 * PART_OF_GROUP.0)
        }
    };
    let Some(ceiling) = ceiling else { return Ok(None) };
    let mut now = used(group)?;
    if Shedding::is_near(now, ceiling) {
        give_back();
        now = used(group)?;
    }
    Ok(Some((now, ceiling)))
}

fn tell(before: Shedding, now: Shedding, memory: Option<(u64, u64)>) {
    let (used, ceiling) = memory.unwrap_or_default();
    let (used_mib, ceiling_mib, sheds) = (used >> 20, ceiling >> 20, now.as_str());
    match now {
        Shedding::Nothing => info!(used_mib, ceiling_mib, sheds, "There is memory again."),
        _ if now < before => info!(used_mib, ceiling_mib, sheds, "Less short of memory."),
        Shedding::KeepAlive => {
            warn!(
                used_mib,
                ceiling_mib, sheds, "Short of memory: idle connections are closed, others after their answer."
            );
        }
        Shedding::Requests => {
            warn!(
                used_mib,
                ceiling_mib, sheds, "Short of memory: new requests are refused. Give perch more, or fewer clients."
            );
        }
        Shedding::Connections => {
            warn!(
                used_mib,
                ceiling_mib, sheds, "Short of memory: new connections are closed. Give perch more, or fewer clients."
            );
        }
    }
}

fn give_back() {
    // One that cannot be had is no reason to end here and now.
    let mut block = Vec::<u8>::new();
    block.try_reserve_exact(SHAKE).ok();
    drop(std::hint::black_box(block));
}

fn used(group: Option<&Group>) -> io::Result<u64> {
    let resident = number_after(&read("/proc/self/status")?, "VmRSS:").ok_or(io::ErrorKind::InvalidData)? * 1024;
    Ok(resident + group.map(Group::sockets).transpose()?.unwrap_or_default())
}

/// A control group of version 2 with a limit, or inside one.
#[derive(Debug)]
struct Group {
    own: PathBuf,
    /// Those with a limit: its own folder, and those around it.
    folders: Vec<PathBuf>,
}

impl Group {
    /// The group that /proc/self/cgroup names. What is mounted at `root` may be the group itself (in a container).
    fn find(root: &Path, memberships: &str) -> Option<Self> {
        let own = memberships.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let own = root.join(own.trim_start_matches("../"));
        let folders: Vec<PathBuf> =
            own.ancestors().filter(|f| f.starts_with(root) && f.join(LIMIT).exists()).map(Path::to_owned).collect();
        // A folder that is not there is named from outside of a container: the mounted one is its own.
        let own = if own.exists() { own } else { folders.first()?.clone() };
        (!folders.is_empty()).then_some(Self { own, folders })
    }

    /// The lowest that holds for it; it may change.
    fn limit(&self) -> io::Result<Option<u64>> {
        let limits: io::Result<Vec<String>> = self.folders.iter().map(|f| read(f.join(LIMIT))).collect();
        Ok(limits?.iter().filter_map(|limit| limit.trim().parse().ok()).min())
    }

    /// Bytes in socket buffers of its own; those of a group around it are others', too.
    fn sockets(&self) -> io::Result<u64> {
        if !self.folders.contains(&self.own) {
            return Ok(0);
        }
        Ok(number_after(&read(self.own.join("memory.stat"))?, "sock ").unwrap_or_default())
    }
}

/// Not there in the root of all groups; "max" where there is none.
const LIMIT: &str = "memory.max";

fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn read(path: impl AsRef<Path>) -> io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, limit: &str, sockets: u64) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(LIMIT), limit).unwrap();
        std::fs::write(folder.join("memory.stat"), format!("anon 5\nsock {sockets}\nsock_other 9\n")).unwrap();
    }

    #[test]
    fn the_lowest_limit_around_the_own_group_holds_and_its_own_sockets_count() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("pods/perch"), "max\n", 7);
        write(&root.path().join("pods"), "1048576\n", 8);

        let group = Group::find(root.path(), "4:memory:/other\n0::/pods/perch\n").unwrap();

        assert_eq!((group.limit().unwrap(), group.sockets().unwrap()), (Some(1_048_576), 7));
        write(&root.path().join("pods/perch"), "4096\n", 7);
        assert_eq!(group.limit().unwrap(), Some(4_096), "it is read anew");
    }

    #[test]
    fn in_a_container_the_mounted_folder_is_the_group() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "2097152\n", 3);

        for memberships in ["0::/\n", "0::/docker/0123\n", "0::/../../docker\n"] {
            let group = Group::find(root.path(), memberships).unwrap();

            assert_eq!((group.limit().unwrap(), group.sockets().unwrap()), (Some(2_097_152), 3), "{memberships}");
        }
    }

    #[test]
    fn without_a_group_or_a_limit_there_is_no_ceiling() {
        let root = tempfile::tempdir().unwrap();

        assert!(Group::find(root.path(), "0::/\n").is_none());
        assert!(Group::find(root.path(), "4:memory:/process\n").is_none());
        write(root.path(), "max\n", 3);
        assert_eq!(Group::find(root.path(), "0::/\n").unwrap().limit().unwrap(), None);
    }

    #[test]
    fn the_memory_in_use_is_known() {
        assert!(used(None).is_ok_and(|used| used > 1 << 20));
    }
}
