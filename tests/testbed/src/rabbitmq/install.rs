//! Finding RabbitMQ's own programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// The folder of RabbitMQ's scripts.
#[derive(Clone, Debug)]
pub(super) struct Installation(PathBuf);

impl Installation {
    /// Looks in `RABBITMQ_BIN` and where packages put it. Not in `PATH`: what lies there on Debian
    /// is a wrapper that switches to the system's user.
    pub(super) fn find() -> Result<Self> {
        let named = env::var_os("RABBITMQ_BIN").filter(|folder| !folder.is_empty()).map(PathBuf::from);
        if let Some(folder) = named {
            return if is_installation(&folder) {
                Ok(Self(folder))
            } else {
                bail!("RABBITMQ_BIN: there is no rabbitmq-server and rabbitmqctl in {}", folder.display())
            };
        }
        let fixed = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin"].map(PathBuf::from);
        let versions = ["/usr/lib/rabbitmq/lib", "/usr/local/lib/erlang/lib"]
            .into_iter()
            .flat_map(fs::read_dir)
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("sbin"));
        fixed.into_iter().chain(versions).find(|folder| is_installation(folder)).map_or_else(
            || {
                bail!(
                    "RabbitMQ is not installed. On Debian and Ubuntu: apt install rabbitmq-server \
                     (scripts/setup does it); elsewhere install it and set RABBITMQ_BIN to the folder of its \
                     rabbitmq-server script"
                )
            },
            |folder| Ok(Self(folder)),
        )
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `PATH` for its scripts: they look for `erl` and `epmd` there.
    pub(super) fn path(&self) -> String {
        let inherited = env::var("PATH").unwrap_or_default();
        format!("{inherited}:/usr/local/bin:/usr/bin:/bin:{}", self.0.display())
    }
}

fn is_installation(folder: &Path) -> bool {
    ["rabbitmq-server", "rabbitmqctl"].iter().all(|program| folder.join(program).is_file())
}
