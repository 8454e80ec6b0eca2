//! The daemon's part in the life of an overlay.

use super::Overlay;
use crate::config::rules::RuleSet;
use crate::tree::{Lifecycle, Passthrough};

impl Passthrough for Overlay {
    fn source_is_stacked(&self) -> bool {
        self.upper.source_is_stacked()
    }

    fn close_passthrough(&self, reason: Option<String>) {
        let kept = || String::from("scratch_max= is kept by the daemon");
        let reason = reason.or_else(|| self.quota.as_ref().map(|_| kept()));
        self.plain_volumes().for_each(|volume| volume.close_passthrough(reason.clone()));
        self.upper.close_passthrough(reason);
    }
}

impl Lifecycle for Overlay {
    fn set_rules(&self, rules: RuleSet) {
        let below = rules.clone().with_modes(|mode| mode.in_base());
        self.plain_volumes().for_each(|volume| volume.set_rules(below.clone()));
        self.policy.write().rules = rules;
        // Other names may be those of the base itself now.
        self.nodes.directories().into_iter().for_each(|dir| self.drop_listing(dir));
    }

    fn expire(&self) {
        std::thread::scope(|scope| {
            for volume in self.plain_volumes() {
                scope.spawn(|| volume.expire());
            }
            scope.spawn(|| self.expire_listings());
            self.upper.expire();
        });
    }

    fn end(&self) {
        self.end_guard();
        self.plain_volumes().for_each(|volume| volume.end());
        self.upper.end();
        self.sweeper.end();
        let Some(scratch) = self.scratch.lock().take() else { return };
        for node in self.nodes.all_where(|node| !node.is_linked()) {
            self.drop_pages_of(&node);
        }
        if let Err(failure) = scratch.put_in_order(|| self.sync_page_maps()) {
            log::error!("{failure}");
        }
    }
}
