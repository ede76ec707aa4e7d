//! The machine under the agent: its namespaces, processes and tools. Knows no order and no driver.

pub mod netns;
pub mod nft;
pub mod process;
pub mod tools;
