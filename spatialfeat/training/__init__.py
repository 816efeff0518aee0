"""What `finetune` is made of: its data, one training, and the files that it leaves."""
