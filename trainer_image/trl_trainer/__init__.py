"""The trainer image's code: TRL on FSDP2 under torchrun, supervised, checkpointed and explained."""
