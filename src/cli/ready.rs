//! Tells systemd how the daemon fares (sd_notify(3)). Without `NOTIFY_SOCKET` nothing happens.

use sd_notify::NotifyState;

/// The mount answers.
pub fn notify_ready() {
    notify(NotifyState::Ready);
}

/// The mount is going away.
pub fn notify_stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("telling systemd: {error}");
    }
}
