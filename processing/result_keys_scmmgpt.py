"""Names of the columns and matrices that hold results in an AnnData."""


class ResultKeys:
    """Keys of what is written under a name; the name itself is the key in `uns`.

    Examples
    --------
    >>> ResultKeys("mine").cell_type
    'mine_cell_type'
    """

    def __init__(self, name: str = "scmmgpt"):
        self.name = name
        # obs
        self.cell_type = f"{name}_cell_type"
        self.term_id = f"{name}_cell_type_ontology_term_id"
        self.confidence = f"{name}_confidence"
        self.second_choice = f"{name}_second_choice"
        self.description = f"{name}_description"
        # obsm
        self.embedding = f"X_{name}"
        self.choice_probability = f"{name}_choice_probability"
