"""A name or a path -> labelled images -> pixels of the model's size.

`datasets` opens data, with `readers` for each format and `streaming` for shards; `catalog` has the data sets known by
name; `images` decodes one image, `preprocess` brings it to the model's size, `store` holds the results. No torch.
"""
