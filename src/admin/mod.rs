//! The admin listener: health, metrics, the configuration in force, the services, explain, and setting weights.
//!
//! It has a thread and a connection budget of its own, so that a scrape or a slow reader never delays a request. It
//! reads snapshots and asks `control` for changes; it never changes anything itself and knows nothing of the data path.

mod guard;
