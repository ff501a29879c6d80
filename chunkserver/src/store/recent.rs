//! What was used last, bounded.

use std::{collections::HashMap, hash::Hash};

/// A map of at most `capacity` entries, in two generations: what is looked at moves to the young one, and when
/// that is half of the capacity, what is left in the old one goes. Nearly as good as least recently used, and a
/// look costs no more than a map's.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq + Copy, V> Recent<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: capacity.div_ceil(2) }
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub(crate) fn get(&mut self, key: K) -> Option<&V> {
        if !self.young.contains_key(&key) {
            let value = self.old.remove(&key)?;
            self.insert(key, value);
        }
        self.young.get(&key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.half == 0 {
            return;
        }
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: K) {
        self.young.remove(&key);
        self.old.remove(&key);
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| keep(key));
        self.old.retain(|key, _| keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_stays_and_the_rest_goes() {
        let mut recent = Recent::new(8);
        for n in 0..100 {
            recent.insert(n, n);
            assert_eq!(recent.get(0), Some(&0), "after {n}");
            assert!(recent.len() <= 8);
        }
        assert_eq!(recent.get(99), Some(&99));
        assert_eq!(recent.get(50), None);
        recent.remove(99);
        recent.retain(|&key| key != 0);
        assert_eq!(recent.get(99), None);
        assert_eq!(recent.get(0), None);
    }

    #[test]
    fn without_capacity_nothing_is_kept() {
        let mut recent = Recent::new(0);
        recent.insert(1, 1);
        assert_eq!(recent.get(1), None);
    }
}
