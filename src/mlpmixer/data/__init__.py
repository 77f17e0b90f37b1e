"""Images on disk -> labelled splits -> arrays of the model's size -> batches.

`images` decodes one image, `preprocess` is the one evaluation preprocessing (with the filters of `official`),
`datasets` opens data by name or path, `store` holds the decoded arrays, `check` looks for what is wrong with a data
set: none of these import torch.
"""
