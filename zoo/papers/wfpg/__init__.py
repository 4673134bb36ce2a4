"""The paper on reinforcement learning as a Wasserstein gradient flow (Dus 2026), and learning curves beside other learners."""
