"""WassersteinFlowPG: learning curves beside the learners that it is compared with."""
