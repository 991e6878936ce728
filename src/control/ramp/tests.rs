//! The runner on a writer without a store.
