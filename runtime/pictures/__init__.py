"""Picture files: any that a person has as pixels, and PNG files that remember how they were drawn."""
