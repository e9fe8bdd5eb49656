"""The data-quality and poisoning gate's measurement: duplicates, outliers, flipped labels and backdoors."""
