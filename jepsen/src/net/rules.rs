//! What a namespace drops of what comes in.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{collections::BTreeSet, net::Ipv4Addr};

/// Rules of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Packets from here are dropped.
    pub(super) deaf_to: BTreeSet<Ipv4Addr>,
    /// Of the others this part is dropped, percent.
    pub(super) loss_percent: u8,
}

impl Rules {
    /// The rules as a script for `nft -f`, which replaces those before in one transaction.
    pub(super) fn text(&self) -> String {
        let mut text = "table ip tidewater\ndelete table ip tidewater\n".to_owned();
        if *self == Self::default() {
            return text;
        }
        text += "table ip tidewater {\n  chain input {\n    type filter hook input priority 0;\n";
        if !self.deaf_to.is_empty() {
            let from: Vec<_> = self.deaf_to.iter().map(ToString::to_string).collect();
            text.extend(["    ip saddr { ", &from.join(", "), " } drop\n"]);
        }
        // The comparison must have both outcomes.
        match self.loss_percent {
            0 => {}
            100.. => text += "    iifname \"eth0\" drop\n",
            some => {
                let some = some.to_string();
                let rule = ["    iifname \"eth0\" numgen random mod 100 < ", &some, " drop\n"];
                text.extend(rule);
            }
        }
        text + "  }\n}\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_replace_those_before_and_none_remove_all() {
        let none = Rules::default().text();
        assert!(none.ends_with("delete table ip tidewater\n"), "{none}");
        let some = Rules { deaf_to: [Ipv4Addr::LOCALHOST].into(), loss_percent: 7 }.text();
        assert!(some.starts_with(&none), "{some}");
        assert!(some.contains("ip saddr { 127.0.0.1 } drop") && some.contains("mod 100 < 7 drop"));
    }
}
